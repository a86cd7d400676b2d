//! Names that nothing has: what was meant?

use super::{
    Failed,
    client::{Client, ClientError},
};
use crate::{
    api::model::{BackendItem, Page, VipItem},
    config::suggestion,
};

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vip,
    /// `POOL/ADDRESS`.
    Backend,
}

/// A refusal, and what is near the name that was given, if nothing has that.
pub(super) async fn explained(
    error: ClientError,
    named: Option<(&str, Kind)>,
    client: &Client,
) -> Failed {
    let (true, Some((name, kind))) = (matches!(error, ClientError::Refused(_)), named) else {
        return error.into();
    };
    match all(kind, client).await {
        Ok(names) if !names.iter().any(|known| known == name) => {
            format!("{error}{}", near(name, &names)).into()
        }
        _ => error.into(),
    }
}

/// An error if nothing has this name.
pub(super) async fn check(name: &str, kind: Kind, client: &Client) -> Result<(), Failed> {
    let names = all(kind, client).await?;
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let what = match kind {
        Kind::Vip => "VIP",
        Kind::Backend => "backend",
    };
    Err(format!("there is no {what} `{name}`{}", near(name, &names)).into())
}

/// "; did you mean `web`?"
fn near(name: &str, names: &[String]) -> String {
    suggestion(name, names.iter().map(String::as_str))
}

async fn all(kind: Kind, client: &Client) -> Result<Vec<String>, ClientError> {
    Ok(match kind {
        Kind::Vip => {
            let page: Page<VipItem> = client.list("/v1/vips").await?;
            page.items.into_iter().map(|item| item.name).collect()
        }
        Kind::Backend => {
            let page: Page<BackendItem> = client.list("/v1/backends").await?;
            let name = |item: BackendItem| format!("{}/{}", item.pool, item.address);
            page.items.into_iter().map(name).collect()
        }
    })
}
