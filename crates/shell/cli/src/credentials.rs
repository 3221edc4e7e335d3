//! Credentials for registries, as `docker login` keeps them.
//!
//! Owns: reading docker's `config.json`, and asking its credential helpers.
//! Does not know: what a registry does with them; nothing here is stored or shown.
//! Invariant: only the credentials of the registry that is asked are read out, and no message
//! holds any of them: what a helper printed is repeated only where its protocol says it is an
//! error's text.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::CliError;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// The user's credentials for `registry` (`docker.io`, `host:port`), where there are any.
pub(crate) async fn find(registry: &str) -> Result<Option<Credentials>, CliError> {
    let Some(path) = config_path() else { return Ok(None) };
    let Some(config) = Config::read(&path)? else { return Ok(None) };
    let server = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
    match config.helper(registry, server) {
        Some(helper) => ask_helper(helper, server).await,
        None => config.entry(server).map_or(Ok(None), |(key, auth)| auth.credentials(&path, key)),
    }
}

/// `$DOCKER_CONFIG/config.json`, else that of the home directory.
fn config_path() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let dir = given("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| given("HOME").map(|home| Path::new(&home).join(".docker")))?;
    Some(dir.join("config.json"))
}

/// The part of docker's configuration that is about credentials.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// `user:password` in base 64.
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

impl Config {
    /// `None` when there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, CliError> {
        let problem = |problem: &dyn fmt::Display| {
            CliError::failed(format!("cannot read {}: {problem}", path.display()))
                .hint("repair it, or set DOCKER_CONFIG to another directory")
        };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(problem(&error)),
        };
        // The place is told, not the text: it may be a part of a secret.
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            problem(&format!("not docker's configuration at line {line}, column {column}"))
        })
    }

    /// One for the registry before the one for all.
    fn helper(&self, registry: &str, server: &str) -> Option<&str> {
        let own = self.helpers.get(server).or_else(|| self.helpers.get(registry));
        own.or(Some(&self.store)).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// By the very key, else by its host: old clients wrote `https://host/v1/`.
    fn entry(&self, server: &str) -> Option<(&str, &Auth)> {
        let wanted = host_of(server);
        self.auths
            .get_key_value(server)
            .or_else(|| self.auths.iter().find(|(key, _)| host_of(key) == wanted))
            .map(|(key, auth)| (key.as_str(), auth))
    }
}

fn host_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    bare.split('/').next().unwrap_or(bare)
}

impl Auth {
    fn credentials(&self, path: &Path, key: &str) -> Result<Option<Credentials>, CliError> {
        if !self.registry_token.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registry_token.clone())));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identity_token.clone())));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            let given = !username.is_empty();
            return Ok(given.then_some(Credentials::Password { username, password }));
        }
        decode(&self.auth).map(Some).ok_or_else(|| {
            let path = path.display();
            CliError::failed(format!("{path}: auths.{key}.auth is not user:password in base 64"))
                .hint("log in again with the tool that wrote it")
        })
    }
}

fn decode(text: &str) -> Option<Credentials> {
    let text = text.trim();
    let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
    let plain = String::from_utf8(bytes).ok()?;
    let (username, password) = plain.split_once(':')?;
    // Old clients padded it.
    let password = password.trim_matches('\0').to_owned();
    Some(Credentials::Password { username: username.to_owned(), password })
}

/// What a helper answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks `docker-credential-NAME get`, whose protocol is a line in, JSON out.
async fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, CliError> {
    let program = format!("docker-credential-{name}");
    let failed = |problem: &dyn fmt::Display| {
        CliError::failed(format!("{program}: {problem}"))
            .hint("credsStore and credHelpers of docker's config.json name it")
    };
    if name.contains('/') {
        return Err(failed(&"a helper is named without its directory"));
    }
    let asked = tokio::time::timeout(HELPER_LIMIT, run_helper(&program, server)).await;
    let asked = asked.map_err(|_| failed(&format!("no answer within {HELPER_LIMIT:?}")))?;
    let (success, output) = asked.map_err(|error| failed(&error))?;
    if !success {
        // The protocol's text for an error; "not found" is an answer.
        let text = String::from_utf8_lossy(&output);
        let line = text.lines().next().unwrap_or_default().trim();
        return if line.to_ascii_lowercase().contains(NOT_FOUND) {
            Ok(None)
        } else {
            Err(failed(&if line.is_empty() { "ended with an error" } else { line }))
        };
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| failed(&"its answer is not that of a credential helper"))?;
    Ok(match answer.username.as_str() {
        "" if answer.secret.is_empty() => None,
        TOKEN_USER => Some(Credentials::IdentityToken(answer.secret)),
        _ => Some(Credentials::Password { username: answer.username, password: answer.secret }),
    })
}

async fn run_helper(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read it will say so.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(HELPER_BYTES_MAX).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}

const DOCKER_HUB: &str = "docker.io";
/// Under which docker keeps the credentials of its own registry.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name that says: the secret is an identity token.
const TOKEN_USER: &str = "<token>";
const NOT_FOUND: &str = "credentials not found";

/// A helper may ask its user for a password.
const HELPER_LIMIT: Duration = Duration::from_secs(60);
const HELPER_BYTES_MAX: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Option<Credentials> {
        let (username, password) = (username.to_owned(), password.to_owned());
        Some(Credentials::Password { username, password })
    }

    fn look(config: &str, registry: &str) -> Result<Option<Credentials>, CliError> {
        let config: Config = serde_json::from_str(config).unwrap();
        let found = config.entry(registry);
        found.map_or(Ok(None), |(key, auth)| auth.credentials(Path::new("config.json"), key))
    }

    #[test]
    fn entries_of_every_form_are_understood() {
        // "me:pa:ss" and "me:x" with a padding of zeros.
        let auths = r#"{"auths": {
            "r.example:5000": {"auth": "bWU6cGE6c3M="},
            "https://old.example/v1/": {"auth": "bWU6eAAA", "email": "x"},
            "plain.example": {"username": "me", "password": "x"},
            "token.example": {"auth": "bWU6eA==", "identitytoken": "t"},
            "bearer.example": {"registrytoken": "b"},
            "empty.example": {}
        }, "currentContext": "other"}"#;
        for (registry, expected) in [
            ("r.example:5000", password("me", "pa:ss")),
            ("old.example", password("me", "x")),
            ("plain.example", password("me", "x")),
            ("token.example", Some(Credentials::IdentityToken("t".into()))),
            ("bearer.example", Some(Credentials::RegistryToken("b".into()))),
            ("empty.example", None),
            ("r.example", None),
        ] {
            assert_eq!(look(auths, registry), Ok(expected), "{registry}");
        }
    }

    #[test]
    fn a_damaged_entry_is_named_and_not_shown() {
        for auth in ["bm9jb2xvbg==", "%%%secret"] {
            let error = look(&format!(r#"{{"auths": {{"r": {{"auth": "{auth}"}}}}}}"#), "r");
            let message = error.unwrap_err().message;
            assert!(message.contains("auths.r.auth") && !message.contains(auth), "{message}");
        }
        let path = std::env::temp_dir().join(format!("shoal-config-{}.json", std::process::id()));
        std::fs::write(&path, r#"{"auths": {"r": {"auth": 7777}}}"#).unwrap();
        let message = Config::read(&path).err().unwrap().message;
        std::fs::remove_file(&path).unwrap();
        assert!(message.contains("line 1") && !message.contains("7777"), "{message}");
        assert!(Config::read(&path).unwrap().is_none());
        let shown = format!("{:?}", password("me", "hush"));
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn the_registrys_own_helper_comes_first() {
        let config: Config = serde_json::from_str(
            r#"{"credsStore": "all", "credHelpers": {"r.example": "own", "off.example": ""}}"#,
        )
        .unwrap();
        for (registry, helper) in
            [("r.example", Some("own")), ("x.example", Some("all")), ("off.example", None)]
        {
            assert_eq!(config.helper(registry, registry), helper, "{registry}");
        }
        assert_eq!(Config::default().helper("r", "r"), None);
    }

    #[tokio::test]
    async fn helpers_are_asked_as_docker_asks_them() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = dir.path().join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\nread server\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        let answer =
            "echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"$1@$server\\\",";
        let good = helper("good", &format!("{answer}\\\"Secret\\\":\\\"s\\\"}}\""));
        let missing = helper("missing", "echo credentials not found in native keychain; exit 1");
        let (success, output) = run_helper(&good, "r.example").await.unwrap();
        assert!(success);
        let answer: Answer = serde_json::from_slice(&output).unwrap();
        assert_eq!((answer.username.as_str(), answer.secret.as_str()), ("get@r.example", "s"));
        let (success, output) = run_helper(&missing, "r.example").await.unwrap();
        assert!(!success && String::from_utf8_lossy(&output).contains(NOT_FOUND));

        let error = ask_helper("no-such-helper", "r.example").await.unwrap_err();
        assert!(error.message.contains("docker-credential-no-such-helper"), "{error}");
        assert!(ask_helper("../x", "r").await.unwrap_err().message.contains("directory"));
    }
}
