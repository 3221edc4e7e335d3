//! Values as they are typed: sizes, durations, CPUs, `key=value`.
//!
//! Owns: the grammar of option values, docker's and Go's.
//! Does not know: which option a value belongs to; the caller adds its name.
//! Invariant: what is refused is quoted, with an example of what would be right.

use base::Millis;
use types::Labels;

/// `512m`, `1.5GiB`, `4096`: binary units, as docker reads memory.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write for example 512m or 2g");
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let (whole, billionths) = parse_decimal(number).ok_or_else(wrong)?;
    let factor = 1024_u128.pow(power);
    let bytes = u128::from(whole) * factor + u128::from(billionths) * factor / BILLION;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is too large"))
}

/// `0.5`, `2`: cores, to billionths of one.
pub(crate) fn parse_cpus(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a number of CPUs: write for example 0.5 or 2");
    if text.split_once('.').is_some_and(|(_, decimals)| decimals.len() > 9) {
        return Err(format!("`{text}` is too precise: at most nine decimals"));
    }
    let (whole, billionths) = parse_decimal(text).ok_or_else(wrong)?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(billionths))
        .ok_or_else(|| format!("`{text}` is too large"))
}

/// Whole part and billionths of `12.5`; `None` when it is not a plain decimal.
fn parse_decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nine: String = decimals.chars().chain("000000000".chars()).take(9).collect();
    Some((whole, nine.parse().ok()?))
}

/// `1h30m`, `1.5s`, `300ms`: Go's durations, to whole milliseconds.
pub(crate) fn parse_duration(text: &str) -> Result<Millis, String> {
    let wrong = || format!("`{text}` is not a duration: write for example 30s, 5m or 1h30m");
    if text == "0" {
        return Ok(Millis::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (whole, billionths) = parse_decimal(&rest[..end]).ok_or_else(wrong)?;
        rest = &rest[end..];
        let (unit, length) =
            UNITS.iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(wrong)?;
        rest = &rest[unit.len()..];
        nanos += u128::from(whole) * length + u128::from(billionths) * length / BILLION;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    if nanos > 0 && nanos < MILLION {
        return Err(format!("`{text}` is shorter than a millisecond"));
    }
    u64::try_from(nanos / MILLION).map(Millis).map_err(|_| format!("`{text}` is too long"))
}

/// `key=value` or `key`, which has an empty value.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(format!("`{text}` has no key: write key=value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Later ones win, as docker's.
pub(crate) fn labels(pairs: &[(String, String)]) -> Labels {
    pairs.iter().cloned().collect()
}

/// `spread=node.labels.zone`; gives the descriptor.
pub(crate) fn parse_preference(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("spread", descriptor)) if !descriptor.is_empty() => Ok(descriptor.to_owned()),
        Some((strategy, _)) if strategy != "spread" => {
            Err(format!("`{strategy}` is not a strategy: write spread=node.labels.KEY"))
        }
        _ => Err(format!("`{text}` is not a preference: write spread=node.labels.KEY")),
    }
}

/// `SERVICE=REPLICAS` of `service scale`.
pub(crate) fn parse_scale(text: &str) -> Result<(String, u64), String> {
    let (name, count) =
        text.split_once('=').ok_or_else(|| format!("invalid scale specifier '{text}'."))?;
    let count = count
        .parse()
        .map_err(|_| format!("invalid replicas value {count}: write SERVICE=REPLICAS"))?;
    Ok((name.to_owned(), count))
}

/// `key=value` of `--filter`.
pub(crate) fn parse_filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok((key.trim().to_lowercase(), value.trim().to_owned()))
        }
        _ => Err(format!("invalid argument `{text}`: write key=value")),
    }
}

/// Splits a command as a shell does: quotes and backslashes, nothing else.
pub(crate) fn parse_command(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                let next = chars.next().ok_or_else(|| format!("`{text}` ends in a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("`{text}` has a quote that is not closed"));
    }
    words.extend(word);
    Ok(words)
}

const BILLION: u128 = 1_000_000_000;
const MILLION: u128 = 1_000_000;
/// Go's units in nanoseconds; those that begin like another one stand before it.
const UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", MILLION),
    ("s", BILLION),
    ("m", 60 * BILLION),
    ("h", 3_600 * BILLION),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("512m", 512 << 20),
            ("64M", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("10 kb", 10 << 10),
            ("1t", 1 << 40),
            (".5k", 512),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1x", "-1m", "1.2.3m", "1mm", "99999999999999999p"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus() {
        for (text, nanos) in [("2", 2_000_000_000), ("0.5", 500_000_000), (".001", 1_000_000)] {
            assert_eq!(parse_cpus(text), Ok(nanos), "{text}");
        }
        for text in ["", "x", "-1", "1e3", "0.0000000001", "99999999999"] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("300ms", 300),
            ("1.5s", 1_500),
            ("1h30m", 5_400_000),
            ("2160h0m0s", 7_776_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "5 s", "1y", "10us", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn commands_are_split_as_a_shell_does() {
        for (text, words) in [
            ("", vec![]),
            ("/bin/sh -c 'a b'", vec!["/bin/sh", "-c", "a b"]),
            ("a \"b \\\" c\" d\\ e ''", vec!["a", "b \" c", "d e", ""]),
        ] {
            assert_eq!(parse_command(text).unwrap(), words, "{text}");
        }
        for text in ["'a", "a\\", "\"x"] {
            assert!(parse_command(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a"), Ok(("a".into(), String::new())));
        assert!(parse_label("=b").is_err());
        assert_eq!(parse_preference("spread=node.labels.x"), Ok("node.labels.x".into()));
        assert!(parse_preference("pack=node.labels.x").is_err());
        assert!(parse_preference("spread=").is_err());
        assert_eq!(parse_scale("web=3"), Ok(("web".into(), 3)));
        assert_eq!(parse_scale("web"), Err("invalid scale specifier 'web'.".into()));
        assert!(parse_scale("web=-1").is_err());
        assert_eq!(parse_filter("Name=x"), Ok(("name".into(), "x".into())));
        assert!(parse_filter("name").is_err());
    }
}
