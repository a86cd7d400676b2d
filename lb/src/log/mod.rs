//! What is logged, and how: for people or for programs, on stderr.

mod few;

use std::{
    io::{self, IsTerminal},
    panic,
};

use clap::ValueEnum;
use tracing_subscriber::{
    EnvFilter, Layer, filter::ParseError, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

pub use few::tell_what_is_left_out;

/// For whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text each
    #[default]
    Human,
    /// A JSON object on a line each
    Json,
}

/// Logs what `filter` lets through, from now on. The same message over and over is said a few times, then counted.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = match format {
        LogFormat::Human => layer.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            panic::set_hook(Box::new(|panic| {
                tracing::error!("{panic}; this is a bug in sluice, please report it");
            }));
            layer
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed()
        }
    };
    tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .with(few::Few)
        .init();
    Ok(())
}
