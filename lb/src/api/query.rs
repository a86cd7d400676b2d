//! What stands behind the `?` of a path: filters, and which part of a list.

use std::{collections::BTreeMap, fmt, str::FromStr};

use axum::{
    Json,
    extract::{FromRequestParts, Query},
    http::{StatusCode, request::Parts},
};
use serde::de::{DeserializeOwned, value::StrDeserializer};
use utoipa::IntoParams;

use super::{Answer, Problem, model::Page};
use crate::config::suggestion;

/// Parameters that nobody took yet. All must be taken before [`Params::window`].
#[derive(Debug)]
pub(super) struct Params(BTreeMap<String, String>);

/// A value that a field must have, if any is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted(pub(super) Option<String>);

/// Which part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) most: usize,
    /// What was answered as `next`, or nothing.
    pub(super) after: u64,
}

/// The same for the description.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only described")]
pub(super) struct WindowParams {
    /// How many at most: 1 to 10,000, 1,000 if nothing is said
    limit: Option<usize>,
    /// What was answered as `next`: go on from there
    after: Option<u64>,
}

impl Params {
    pub(super) fn text(&mut self, name: &str) -> Wanted {
        Wanted(self.0.remove(name))
    }

    pub(super) fn value<T: FromStr>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        let wrong = |_| bad(name, format!("`{text}` is not {expected}"));
        text.parse().map(Some).map_err(wrong)
    }

    /// One of the words that a type has in JSON.
    pub(super) fn word<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        let word = T::deserialize(StrDeserializer::new(&text));
        word.map(Some)
            .map_err(|NoWord(words)| no_word(name, &text, words.iter().copied()))
    }

    /// One of these, by its word.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &str,
        all: &[T],
        word: fn(T) -> &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        match all.iter().find(|one| word(**one) == text) {
            Some(one) => Ok(Some(*one)),
            None => Err(no_word(name, &text, all.iter().map(|one| word(*one)))),
        }
    }

    /// The part of the list that is asked for. What nobody took is refused here.
    pub(super) fn window(mut self) -> Result<Window, Problem> {
        let most = self.value("limit", "a number")?.unwrap_or(ITEMS);
        let after = self.value("after", "what was answered as `next`")?;
        self.none_left()?;
        if !(1..=MOST_ITEMS).contains(&most) {
            let why = format!("{most} is not from 1 to {MOST_ITEMS}");
            return Err(bad("limit", why));
        }
        Ok(Window {
            most,
            after: after.unwrap_or(0),
        })
    }
}

impl Params {
    /// What nobody took is refused.
    pub(super) fn none_left(&self) -> Result<(), Problem> {
        match self.0.keys().next() {
            Some(name) => Err(bad(name, format!("there is no parameter `{name}` here"))),
            None => Ok(()),
        }
    }
}

impl Wanted {
    pub(super) fn is(&self, value: &str) -> bool {
        self.0.as_ref().is_none_or(|wanted| wanted == value)
    }
}

/// A part of a list that stands in a fixed order.
pub(super) fn page<T>(items: Vec<T>, window: Window) -> Answer<Page<T>> {
    let first = usize::try_from(window.after).unwrap_or(usize::MAX);
    let end = first.saturating_add(window.most);
    let next = (end < items.len()).then(|| end.to_string());
    let items = items.into_iter().skip(first).take(window.most).collect();
    Ok(Json(Page { items, next }))
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|wrong| Problem::new(StatusCode::BAD_REQUEST, wrong.body_text()))?;
        let mut params = BTreeMap::new();
        for (name, value) in pairs {
            if params.contains_key(&name) {
                return Err(bad(&name, format!("`{name}` is given twice")));
            }
            params.insert(name, value);
        }
        Ok(Self(params))
    }
}

/// A text that is none of these words.
#[derive(Debug, thiserror::Error)]
#[error("no word")]
struct NoWord(&'static [&'static str]);

impl serde::de::Error for NoWord {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }

    fn unknown_variant(_: &str, words: &'static [&'static str]) -> Self {
        Self(words)
    }
}

fn no_word<'w>(name: &str, text: &str, words: impl IntoIterator<Item = &'w str>) -> Problem {
    let near = suggestion(text, words);
    bad(name, format!("`{name}` cannot be `{text}`{near}"))
}

fn bad(name: &str, why: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, why).of_field(name)
}

/// Of a list, unless another number is asked for.
const ITEMS: usize = 1_000;
pub(super) const MOST_ITEMS: usize = 10_000;
