//! A small server that says who answered: for demonstrations and tests.
//!
//! Owns: the command line, the environment and the signals.
//! Does not know: containers, except that it is usually the only process of one.
//! Invariant: needs no file, no name resolution and no shared library, so that an image of it
//! needs nothing but the binary. As the first process of a container it ends on SIGTERM, with 0.

mod answer;
mod image;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

use crate::answer::Identity;

const USAGE: &str = "\
usage: whoami [--port PORT]
       whoami image FILE [--name NAME:TAG]

Serves HTTP and UDP on PORT (environment PORT, default 80):
  /           text: host name, task, node, client      /json       the same as JSON
  /health     200, or 503 after /unhealthy             /unhealthy, /healthy
  /exit?code=N     ends with that code                 /alloc?mb=N      keeps so much memory
  /log?lines=N&text=TEXT   writes lines to standard output
`whoami image` writes a `docker save` archive of this (static) binary to FILE.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match parse(&args, std::env::var("PORT").ok()) {
        Ok(Mode::Serve { port }) => serve(port),
        Ok(Mode::Image { file, name }) => {
            image::write(&file, &name).map_err(|error| format!("{}: {error}", file.display()))
        }
        Ok(Mode::Help) => {
            print!("{USAGE}");
            Ok(())
        }
        Err(problem) => {
            eprintln!("whoami: {problem}\n{USAGE}");
            return ExitCode::from(125);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("whoami: {problem}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Serve { port: u16 },
    Image { file: PathBuf, name: String },
    Help,
}

fn parse(args: &[String], port: Option<String>) -> Result<Mode, String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| {
        text.parse().map_err(|_| format!("port {text:?} is not a number from 0 to 65535"))
    };
    match words.as_slice() {
        [] => Ok(Mode::Serve { port: port.as_deref().map_or(Ok(80), number)? }),
        ["--port", port] => Ok(Mode::Serve { port: number(port)? }),
        ["image", file] => Ok(Mode::Image { file: file.into(), name: NAME.to_owned() }),
        ["image", file, "--name", name] => {
            Ok(Mode::Image { file: file.into(), name: (*name).to_owned() })
        }
        ["help" | "--help" | "-h"] => Ok(Mode::Help),
        other => Err(format!("unknown arguments {other:?}")),
    }
}

fn serve(port: u16) -> Result<(), String> {
    // Before any other thread, so that all of them inherit the mask and one thread gets it all.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|error| format!("block signals: {error}"))?;
    let server = server::Server::bind(port, Identity::from_environment())
        .map_err(|error| format!("port {port}: {error}"))?;
    println!("listening on port {}", server.port());
    std::thread::spawn(move || server.run());
    let signal = signals.wait().map_err(|error| format!("wait for a signal: {error}"))?;
    println!("{signal}: ending");
    Ok(())
}

const NAME: &str = "shoal/whoami:latest";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood_or_refused() {
        let image = |name: &str| Mode::Image { file: "o.tar".into(), name: name.into() };
        for (args, port, expected) in [
            ("", None, Some(Mode::Serve { port: 80 })),
            ("", Some("8080"), Some(Mode::Serve { port: 8080 })),
            ("--port 81", Some("8080"), Some(Mode::Serve { port: 81 })),
            ("image o.tar", None, Some(image("shoal/whoami:latest"))),
            ("image o.tar --name a:b", None, Some(image("a:b"))),
            ("--help", None, Some(Mode::Help)),
            ("--port x", None, None),
            ("--port 65536", None, None),
            ("", Some("x"), None),
            ("image", None, None),
            ("what", None, None),
        ] {
            let words: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
            assert_eq!(parse(&words, port.map(str::to_owned)).ok(), expected, "{args}");
        }
    }
}
