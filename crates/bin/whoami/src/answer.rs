//! What is answered to which request.
//!
//! Owns: paths, parameters and texts.
//! Does not know: sockets, threads, memory and the end of the process: those are named as an
//! [`Effect`] and done by the server.
//! Invariant: the same request to the same identity gets the same answer.

use std::net::SocketAddr;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) task: String,
    pub(crate) node: String,
}

impl Identity {
    /// The host name stands in for a task or node that the environment does not name.
    pub(crate) fn from_environment() -> Self {
        let hostname = nix::unistd::gethostname()
            .map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        let named = |variable| {
            let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
            value.unwrap_or_else(|| hostname.clone())
        };
        Self { task: named("SHOAL_TASK_NAME"), node: named("SHOAL_NODE"), hostname }
    }

    pub(crate) fn text(&self, client: SocketAddr) -> String {
        format!(
            "Hostname: {}\nTask: {}\nNode: {}\nClient: {client}\n",
            self.hostname, self.task, self.node
        )
    }

    fn json(&self, client: SocketAddr) -> String {
        let mut text = String::from("{");
        for (key, value) in [
            ("hostname", self.hostname.as_str()),
            ("task", &self.task),
            ("node", &self.node),
            ("client", &client.to_string()),
        ] {
            let comma = if text.len() > 1 { "," } else { "" };
            text.push_str(&format!("{comma}\"{key}\":\"{}\"", escaped(value)));
        }
        text + "}\n"
    }
}

/// An answer and what is to be done besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) json: bool,
    pub(crate) body: String,
    pub(crate) effect: Effect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// End the process once the answer is sent.
    Exit(i32),
    SetHealthy(bool),
    /// Keep so many bytes of memory until the end.
    Allocate(usize),
    Log {
        lines: u32,
        text: String,
    },
}

/// `target` is the request's path with its query.
pub(crate) fn decide(
    target: &str,
    identity: &Identity,
    client: SocketAddr,
    healthy: bool,
) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameters = parse_query(query);
    let decided = match path {
        "/" => Ok(answer(identity.text(client), Effect::None)),
        "/json" => Ok(Answer { json: true, ..answer(identity.json(client), Effect::None) }),
        "/health" if healthy => Ok(answer("healthy\n", Effect::None)),
        "/health" => Ok(Answer { status: 503, ..answer("unhealthy\n", Effect::None) }),
        "/healthy" => Ok(answer("healthy from now on\n", Effect::SetHealthy(true))),
        "/unhealthy" => Ok(answer("unhealthy from now on\n", Effect::SetHealthy(false))),
        "/exit" => number(&parameters, "code", 0, 255)
            .map(|code| answer(format!("ending with {code}\n"), Effect::Exit(code as i32))),
        "/alloc" => number(&parameters, "mb", 1, MEGABYTES_MAX).map(|megabytes| {
            let effect = Effect::Allocate(megabytes as usize * 1024 * 1024);
            answer(format!("{megabytes} MB more\n"), effect)
        }),
        "/log" => number(&parameters, "lines", 1, LINES_MAX).map(|lines| {
            let text = parameter(&parameters, "text").unwrap_or("a line").to_owned();
            answer(format!("{lines} lines\n"), Effect::Log { lines, text })
        }),
        _ => Err((404, format!("no {path} here\n"))),
    };
    decided.unwrap_or_else(|(status, body)| Answer { status, ..answer(body, Effect::None) })
}

fn answer(body: impl Into<String>, effect: Effect) -> Answer {
    Answer { status: 200, json: false, body: body.into(), effect }
}

type Parameters = Vec<(String, String)>;

fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// A missing number is the least one.
fn number(
    parameters: &Parameters,
    name: &str,
    least: u32,
    most: u32,
) -> Result<u32, (u16, String)> {
    let Some(text) = parameter(parameters, name) else { return Ok(least) };
    match text.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err((400, format!("{name}: {text:?} is not a number from {least} to {most}\n"))),
    }
}

fn parse_query(query: &str) -> Parameters {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescaped(key), unescaped(value))
        })
        .collect()
}

/// `%41` and `+` as in forms; what is not a valid escape stays.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escape = bytes[at] == b'%' && at + 2 < bytes.len();
        let code = text.get(at + 1..at + 3).filter(|_| escape);
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out
}

const MEGABYTES_MAX: u32 = 1024 * 1024;

const LINES_MAX: u32 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(target: &str, healthy: bool) -> Answer {
        let identity = Identity { hostname: "h".into(), task: "web.1".into(), node: "n\"1".into() };
        decide(target, &identity, "10.0.0.9:77".parse().unwrap(), healthy)
    }

    #[test]
    fn it_says_who_it_is() {
        let text = ask("/", true);
        assert_eq!(text.body, "Hostname: h\nTask: web.1\nNode: n\"1\nClient: 10.0.0.9:77\n");
        let json = ask("/json", true);
        assert!(json.json);
        assert_eq!(
            json.body,
            "{\"hostname\":\"h\",\"task\":\"web.1\",\"node\":\"n\\\"1\",\
             \"client\":\"10.0.0.9:77\"}\n"
        );
    }

    #[test]
    fn health_follows_what_was_asked_for() {
        assert_eq!((ask("/health", true).status, ask("/health", false).status), (200, 503));
        assert_eq!(ask("/unhealthy", true).effect, Effect::SetHealthy(false));
        assert_eq!(ask("/healthy", false).effect, Effect::SetHealthy(true));
    }

    #[test]
    fn parameters_are_checked() {
        let log = |lines, text: &str| Effect::Log { lines, text: text.into() };
        for (target, status, effect) in [
            ("/exit?code=7", 200, Effect::Exit(7)),
            ("/exit", 200, Effect::Exit(0)),
            ("/exit?code=256", 400, Effect::None),
            ("/alloc?mb=2", 200, Effect::Allocate(2 * 1024 * 1024)),
            ("/alloc?mb=0", 400, Effect::None),
            ("/alloc?mb=x", 400, Effect::None),
            ("/log?lines=3", 200, log(3, "a line")),
            ("/log?lines=3&text=a+b%21%2", 200, log(3, "a b!%2")),
            ("/nope", 404, Effect::None),
        ] {
            let answer = ask(target, true);
            assert_eq!((answer.status, answer.effect), (status, effect), "{target}");
        }
    }
}
