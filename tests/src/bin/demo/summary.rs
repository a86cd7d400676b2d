//! What was promised, and whether it held.

/// One promise.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) text: &'static str,
    pub(crate) kept: bool,
    /// The figures that say so.
    pub(crate) because: String,
}

impl Promise {
    pub(crate) fn new(text: &'static str, kept: bool, because: impl Into<String>) -> Self {
        Self {
            text,
            kept,
            because: because.into(),
        }
    }

    /// That nothing of the kind happened in so many cases; the first that did is shown.
    pub(crate) fn none(text: &'static str, exceptions: &[String], cases: &str) -> Self {
        let because = exceptions.first().map_or_else(
            || cases.to_owned(),
            |first| format!("{} times, at first: {first}", exceptions.len()),
        );
        Self::new(text, exceptions.is_empty(), because)
    }
}

/// Prints the table; true if all were kept.
pub(crate) fn print(promises: &[Promise]) -> bool {
    let width = promises
        .iter()
        .map(|promise| promise.text.len())
        .max()
        .unwrap_or_default();
    println!("\nSummary");
    for promise in promises {
        let kept = if promise.kept { "kept  " } else { "BROKEN" };
        println!("  {kept}  {:<width$}  {}", promise.text, promise.because);
    }
    let broken = promises.iter().filter(|promise| !promise.kept).count();
    if broken == 0 {
        println!("All {} promises were kept.", promises.len());
    } else {
        println!("{broken} of {} promises were BROKEN.", promises.len());
    }
    broken == 0
}
