//! From a user's credentials to what the registry's client shows.
//!
//! Owns: the exchange of an identity token at the registry's token server (OAuth 2, as docker does
//! it). Passwords are the client's to exchange.
//! Does not know: where credentials come from.
//! Invariant: no credential goes over a line that is not encrypted, unless the registry itself is
//! one that is spoken to that way; none is followed to another server, and none is in a message.

use std::time::Duration;

use oci_client::secrets::RegistryAuth as ClientAuth;
use ports::runtime::{RegistryAuth, RuntimeError};
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;

use crate::fail::refused;

/// The registry as it is spoken to.
pub(super) struct Registry<'a> {
    /// `index.docker.io`, `host:port`.
    pub(super) host: &'a str,
    /// Of the image, within the registry.
    pub(super) repository: &'a str,
    /// Without TLS.
    pub(super) plain: bool,
}

/// What the client is to show for pulling.
pub(super) async fn client_auth(
    registry: &Registry<'_>,
    auth: Option<RegistryAuth>,
) -> Result<ClientAuth, RuntimeError> {
    match auth {
        None => Ok(ClientAuth::Anonymous),
        Some(RegistryAuth::Password { username, password }) => {
            Ok(ClientAuth::Basic(username, password))
        }
        Some(RegistryAuth::RegistryToken(token)) => Ok(ClientAuth::Bearer(token)),
        Some(RegistryAuth::IdentityToken(token)) => {
            let exchanged = tokio::time::timeout(LOGIN_LIMIT, exchange(registry, &token)).await;
            let exchanged = exchanged.map_err(|_| failed(registry, "does not answer in time"))?;
            exchanged.map(|token| token.map_or(ClientAuth::Anonymous, ClientAuth::Bearer))
        }
    }
}

fn failed(registry: &Registry<'_>, problem: &str) -> RuntimeError {
    refused("log in to the registry", format!("{} {problem}", registry.host))
}

/// `None` when the registry wants no credentials.
async fn exchange(registry: &Registry<'_>, identity: &str) -> Result<Option<String>, RuntimeError> {
    let broken = |error: reqwest::Error| {
        // Without the address, which may be long and says nothing new.
        failed(registry, &format!("cannot be asked: {}", base::chain(&error.without_url())))
    };
    let client = Client::builder()
        .redirect(Policy::none())
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(broken)?;
    let scheme = if registry.plain { "http" } else { "https" };
    let root = format!("{scheme}://{}/v2/", registry.host);
    let answer = client.get(root).send().await.map_err(broken)?;
    if answer.status() != StatusCode::UNAUTHORIZED {
        return Ok(None);
    }
    let header = answer.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let challenge = header.and_then(Challenge::parse).ok_or_else(|| {
        failed(registry, "takes no identity tokens; log in with a name and a password")
    })?;
    if !registry.plain && !challenge.realm.starts_with("https://") {
        return Err(failed(registry, "names a token server without TLS; nothing was sent to it"));
    }
    let form = form(&[
        ("grant_type", "refresh_token"),
        ("service", &challenge.service),
        ("client_id", "shoal"),
        ("scope", &format!("repository:{}:pull", registry.repository)),
        ("refresh_token", identity),
    ]);
    let request = client
        .post(&challenge.realm)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form);
    let answer = request.send().await.map_err(broken)?;
    let status = answer.status();
    if !status.is_success() {
        let problem = format!("does not take the identity token ({status}); log in again");
        return Err(failed(registry, &problem));
    }
    let body = read(answer).await.map_err(broken)?;
    let tokens: Tokens = serde_json::from_slice(&body)
        .map_err(|_| failed(registry, "answers with something else than a token"))?;
    match tokens.access_token.or(tokens.token) {
        Some(token) => Ok(Some(token)),
        None => Err(failed(registry, "answers without a token")),
    }
}

async fn read(mut answer: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            // What was cut off does not parse.
            break;
        }
    }
    Ok(body)
}

#[derive(Deserialize)]
struct Tokens {
    access_token: Option<String>,
    /// The older name.
    token: Option<String>,
}

/// `Bearer realm="…",service="…"`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut challenge = Self::default();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = value.to_owned(),
                "service" => challenge.service = value.to_owned(),
                _ => {}
            }
            rest = next.trim_start().trim_start_matches(',');
        }
        (!challenge.realm.is_empty()).then_some(challenge)
    }
}

fn form(fields: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{name}={}", encode(value));
    fields.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// For both questions together.
const LOGIN_LIMIT: Duration = Duration::from_secs(30);

/// Tokens have a few kilobytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn challenges_are_understood() {
        let good = |realm: &str, service: &str| {
            Some(Challenge { realm: realm.into(), service: service.into() })
        };
        for (header, expected) in [
            (
                "Bearer realm=\"https://a/t?x=1\",service=\"r, s\",scope=\"x\"",
                good("https://a/t?x=1", "r, s"),
            ),
            ("bearer service=r, realm=\"https://a\"", good("https://a", "r")),
            ("Bearer realm=\"unclosed", None),
            ("Bearer service=\"r\"", None),
            ("Basic realm=\"r\"", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
        assert_eq!(form(&[("a", "b c"), ("d", "é/~")]), "a=b%20c&d=%C3%A9%2F~");
    }

    /// Answers requests one after the other, each with the next of `answers`, in which `ADDRESS`
    /// stands for its own; gives back what it was asked.
    fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let own = address.clone();
        let server = std::thread::spawn(move || {
            let answer = |answer: String| {
                let mut stream = listener.accept().unwrap().0;
                let mut asked = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let count = stream.read(&mut buffer).unwrap();
                    asked.extend_from_slice(&buffer[..count]);
                    let text = String::from_utf8_lossy(&asked).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.to_ascii_lowercase();
                    let length = length.split("content-length: ").nth(1);
                    let length = length.and_then(|l| l.lines().next()?.parse().ok());
                    if body.len() >= length.unwrap_or(0usize) {
                        stream.write_all(answer.replace("ADDRESS", &own).as_bytes()).unwrap();
                        return text;
                    }
                }
            };
            answers.into_iter().map(answer).collect()
        });
        (address, server)
    }

    fn http(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n\
             {body}"
        )
    }

    const CHALLENGE: &str =
        "WWW-Authenticate: Bearer realm=\"http://ADDRESS/token\",service=\"reg\"\r\n";

    async fn log_in(address: &str, plain: bool) -> Result<ClientAuth, RuntimeError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = Registry { host: address, repository: "team/app", plain };
        client_auth(&registry, Some(RegistryAuth::IdentityToken("hush hush".into()))).await
    }

    #[tokio::test]
    async fn an_identity_token_is_exchanged() {
        let (address, server) = serve(vec![
            http("401 Unauthorized", CHALLENGE, ""),
            http("200 OK", "", "{\"access_token\": \"short\", \"expires_in\": 300}"),
        ]);
        assert_eq!(log_in(&address, true).await, Ok(ClientAuth::Bearer("short".into())));
        let asked = server.join().unwrap();
        assert!(asked[0].starts_with("GET /v2/ "), "{}", asked[0]);
        assert!(!asked[0].contains("hush"), "{}", asked[0]);
        assert!(asked[1].starts_with("POST /token "), "{}", asked[1]);
        let form = "grant_type=refresh_token&service=reg&client_id=shoal\
                    &scope=repository%3Ateam%2Fapp%3Apull&refresh_token=hush%20hush";
        assert!(asked[1].ends_with(form), "{}", asked[1]);
    }

    #[tokio::test]
    async fn refusals_are_told_without_the_token() {
        let denied = || http("401 Unauthorized", CHALLENGE, "");
        let elsewhere = "Location: http://203.0.113.1/\r\n";
        let basic = http("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", "");
        for (answers, words) in [
            (vec![denied(), http("401 Unauthorized", "", "hush")], "does not take the identity"),
            (vec![denied(), http("307 Temporary Redirect", elsewhere, "")], "does not take the"),
            (vec![denied(), http("200 OK", "", "{}")], "without a token"),
            (vec![denied(), http("200 OK", "", "<html>")], "something else than a token"),
            (vec![basic], "takes no identity tokens"),
        ] {
            let (address, server) = serve(answers);
            let error = log_in(&address, true).await.unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("hush"), "{error}");
            server.join().unwrap();
        }
    }

    #[tokio::test]
    async fn what_wants_no_credentials_gets_none() {
        let (address, server) = serve(vec![http("200 OK", "", "{}")]);
        assert_eq!(log_in(&address, true).await, Ok(ClientAuth::Anonymous));
        server.join().unwrap();
    }
}
