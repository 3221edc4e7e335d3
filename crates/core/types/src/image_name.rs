//! Names of images.
//!
//! Owns: docker's grammar of references and its defaults (`docker.io`, `library/`, `latest`).
//! Does not know: which images exist, or identities of images without a name.
//! Invariant: two spellings of one name are equal once parsed.

use std::fmt;

use crate::Fault;

/// A reference to an image, with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    /// `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub path: String,
    /// `latest` when neither tag nor digest was given. `None` beside a digest: a digest says it
    /// all, and a tag that stands with one is only a comment.
    pub tag: Option<String>,
    pub digest: Option<String>,
}

impl ImageName {
    /// Understands `[registry/]name[:tag][@digest]`.
    ///
    /// # Errors
    /// Names the field `image` and says what would be right.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        Self::understand(text).ok_or_else(|| {
            Fault::invalid("image", format!("`{text}` is not a valid image reference"))
                .hint("write [registry/]name[:tag][@sha256:digest], the name in lower case")
        })
    }

    fn understand(text: &str) -> Option<Self> {
        if text.len() > REFERENCE_BYTES_MAX {
            return None;
        }
        let (tagged, digest) = match text.split_once('@') {
            Some((tagged, digest)) if is_digest(digest) => (tagged, Some(digest)),
            Some(_) => return None,
            None => (text, None),
        };
        let last = tagged.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match tagged[last..].find(':') {
            Some(at) => (&tagged[..last + at], Some(&tagged[last + at + 1..])),
            None => (tagged, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return None;
        }
        let (registry, path) = split_registry(name);
        let registry = if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry };
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let path = if official { format!("library/{path}") } else { path.to_owned() };
        let good = is_registry(registry)
            && path.len() <= PATH_BYTES_MAX
            && path.split('/').all(is_path_component);
        let tag = match (digest, tag) {
            (Some(_), _) => None,
            (None, tag) => Some(tag.unwrap_or("latest").to_owned()),
        };
        good.then(|| Self {
            registry: registry.to_owned(),
            path,
            tag,
            digest: digest.map(str::to_owned),
        })
    }

    /// `docker.io/library/nginx`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// `repository:tag`, the form in which nodes keep names; `None` of a name with a digest.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository()))
    }

    /// `repository@sha256:…`.
    #[must_use]
    pub fn pinned(&self) -> Option<String> {
        self.digest.as_ref().map(|digest| format!("{}@{digest}", self.repository()))
    }
}

/// The full form: tagged or pinned.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// The part before the first slash is a registry when it looks like a host and not like a user.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `host[:port]`.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(h, p)| (h, Some(p)));
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        edge(bytes.first()) && edge(bytes.last()) && inner
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// Lower case letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_path_component(text: &str) -> bool {
    let lower = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let separators = bytes.split(lower).filter(|run| !run.is_empty());
    let good = |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
    bytes.first().is_some_and(lower)
        && bytes.last().is_some_and(lower)
        && separators.clone().all(good)
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

const DEFAULT_REGISTRY: &str = "docker.io";
/// The same registry, as old clients wrote it.
const LEGACY_REGISTRY: &str = "index.docker.io";

/// The distribution specification's.
const PATH_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
/// Host, path, tag and the longest digest.
const REFERENCE_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    #[test]
    fn names_get_their_defaults() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27-alpine_x", "docker.io/library/nginx:1.27-alpine_x"),
            ("shoal/whoami", "docker.io/shoal/whoami:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
            ("localhost/x:y", "localhost/x:y"),
            // Without a slash it is a tag, not a port.
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("Host/x", "Host/x:latest"),
            ("r.example/a__b/c--d.e:T", "r.example/a__b/c--d.e:T"),
        ] {
            assert_eq!(ImageName::parse(text).unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn a_digest_says_it_all() {
        for text in [format!("nginx@{}", digest()), format!("nginx:1@{}", digest())] {
            let name = ImageName::parse(&text).unwrap();
            assert_eq!(name.tagged(), None);
            assert_eq!(name.pinned(), Some(format!("docker.io/library/nginx@{}", digest())));
            assert_eq!(name.pinned(), Some(name.to_string()));
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = format!("a/{}", "b".repeat(300));
        let cases = [
            "",
            "UPPER",
            "Nginx",
            "a b",
            "x:y:z",
            "x:",
            "/x",
            "x/",
            "a//b",
            "-x",
            "x-",
            "a___b",
            "a..b",
            ".x",
            "x:.y",
            "r.example:0/x",
            "r.example:port/x",
            "-r.example/x",
            "@sha256:00",
            "x@sha256:00",
            "x@md5:00",
            "x@",
            &long,
        ];
        for text in cases {
            assert_eq!(ImageName::parse(text).unwrap_err().field, "image", "{text:?}");
        }
        let upper = format!("x@sha256:{}", "A".repeat(64));
        assert!(ImageName::parse(&upper).is_err());
    }
}
