//! What each command does: asks the daemon and prints the answer.
//!
//! Owns: the order of requests and the texts.
//! Does not know: sockets and templates.
//! Invariant: several names on one command line are all tried; the errors are printed at the end.

mod image;
mod logs;
mod network;
mod network_check;
mod network_key;
mod node;
mod service;
mod swarm;
mod system;
pub(crate) mod task;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use base::Timestamp;
use serde_json::Value as Json;

use crate::Build;
use crate::args::{Command, Global, InspectFormat};
use crate::client::{self, Host};
use crate::error::CliError;
use crate::output::Template;

pub(crate) async fn run(build: Build, options: Global, command: Command) -> Result<(), CliError> {
    let host = Host::parse(&options.host)?;
    match command {
        Command::Daemon(_) => Err(CliError::failed("the daemon is not a client")),
        Command::Completion(args) => system::completion(build, args.shell),
        Command::System(command) => system::dial(&host, &command),
        Command::Version(args) => system::version(build, &host, args.format.as_deref()).await,
        Command::Swarm(command) => swarm::run(&mut client::connect(&host).await?, command).await,
        Command::Node(command) => node::run(&mut client::connect(&host).await?, command).await,
        Command::Service(command) => {
            service::run(&mut client::connect(&host).await?, command).await
        }
        Command::Image(command) => image::run(&mut client::connect(&host).await?, command).await,
        Command::Network(command) => {
            network::run(&mut client::connect(&host).await?, command).await
        }
        Command::Info(args) => {
            system::info(&mut client::connect(&host).await?, build, args.format.as_deref()).await
        }
    }
}

/// Now, for texts such as `3 minutes ago`.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

pub(crate) fn print_line(text: impl std::fmt::Display) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Says how old a list is when no leader confirmed it.
fn warn_when_stale(freshness: Option<&wire::v1::Freshness>) {
    let Some(freshness) = freshness else { return };
    if !freshness.leader_known {
        let seconds = freshness.behind_ms / 1_000;
        eprintln!("WARNING: no leader answers; what is shown may be {seconds} s old");
    }
}

/// `inspect`: a list of objects as JSON, or each through a template.
fn print_inspected(format: &InspectFormat, objects: &[Json]) -> Result<(), CliError> {
    match format.format.as_deref() {
        None => print_line(indented(&Json::Array(objects.to_vec()))),
        Some("json") => print_line(Json::Array(objects.to_vec())),
        Some(template) => {
            let template = Template::parse(template)?;
            objects.iter().try_for_each(|object| print_line(template.render(object)?))
        }
    }
}

/// One object, of which the command shows only one: `info`, `version`.
fn print_one(format: &str, object: &Json) -> Result<(), CliError> {
    if format == "json" {
        return print_line(object);
    }
    print_line(Template::parse(format)?.render(object)?)
}

/// JSON with four spaces a level, as docker's.
fn indented(value: &Json) -> String {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_else(|_| value.to_string()),
        Err(_) => value.to_string(),
    }
}

/// Errors of several names: all are printed, the last one ends the command.
#[derive(Default)]
struct Failures(Vec<CliError>);

impl Failures {
    /// Keeps an error for the end; gives what went well.
    fn keep<T>(&mut self, result: Result<T, CliError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error);
                None
            }
        }
    }

    fn finish(mut self) -> Result<(), CliError> {
        let last = self.0.pop();
        for error in &self.0 {
            error.print();
        }
        last.map_or(Ok(()), Err)
    }
}

/// The error of a filter that this list does not have.
fn unknown_filter(key: &str, known: &str) -> CliError {
    CliError::usage("--filter", format!("invalid filter '{key}'"))
        .hint(format!("there are: {known}"))
}

/// The text of an identity's bytes; empty for none.
fn id_text(bytes: &[u8]) -> String {
    base::Id::from_bytes(bytes).map(|id| id.to_string()).unwrap_or_default()
}
