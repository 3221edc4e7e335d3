//! Rules for one source file: sizes, module docs, leftovers, biased selects.
//!
//! Owns: the limits on lines, functions and files, and the list of words that may not stay.
//! Does not know: the file system or other files.
//! Invariant: test code is bound by the line width and the bans, not by the sizes.

use std::path::Path;

use super::Finding;
use super::lexer::blank;

/// Everything that breaks a rule in the file `path` with the content `text`.
pub(crate) fn check(path: &Path, text: &str) -> Vec<Finding> {
    if path.starts_with(GENERATED) {
        return Vec::new();
    }
    let source = Source::new(path, text);
    let mut findings = Vec::new();
    source.module_docs(&mut findings);
    source.widths(&mut findings);
    source.file_size(&mut findings);
    source.function_sizes(&mut findings);
    source.leftovers(&mut findings);
    source.selects(&mut findings);
    source.unsafe_allowances(&mut findings);
    findings
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// The text without comments and literals, line by line as long as the original.
    code: String,
    /// First line of the test module at the end of the file, counted from one.
    tests_from: Option<usize>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, text: &'a str) -> Self {
        let code = blank(text);
        let marker = code.lines().position(|line| line.trim_start().starts_with("#[cfg(test)]"));
        let in_tests = path.components().any(|part| part.as_os_str() == "tests");
        let tests_from = if in_tests { Some(1) } else { marker.map(|line| line + 1) };
        Self { path, text, code, tests_from }
    }

    fn finding(&self, line: usize, text: impl Into<String>) -> Finding {
        Finding::at(self.path, line, text)
    }

    fn is_test(&self, line: usize) -> bool {
        self.tests_from.is_some_and(|first| line >= first)
    }

    fn module_docs(&self, findings: &mut Vec<Finding>) {
        let first = self.text.lines().find(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with("#![") && !line.starts_with("// SPDX")
        });
        if !first.is_some_and(|line| line.starts_with("//! ")) {
            findings.push(self.finding(1, "a module opens with //! docs: what it owns"));
        }
    }

    fn widths(&self, findings: &mut Vec<Finding>) {
        for (index, line) in self.text.lines().enumerate() {
            let width = line.chars().count();
            if width > LINE_WIDTH_MAX {
                let text = format!("{width} characters wide, at most {LINE_WIDTH_MAX}");
                findings.push(self.finding(index + 1, text));
            }
        }
    }

    fn file_size(&self, findings: &mut Vec<Finding>) {
        let lines = self.text.lines().count();
        let lines = self.tests_from.map_or(lines, |first| first - 1);
        if lines > FILE_LINES_MAX {
            let text = format!("{lines} lines without tests, at most {FILE_LINES_MAX}");
            findings.push(self.finding(1, text));
        }
    }

    fn function_sizes(&self, findings: &mut Vec<Finding>) {
        for function in functions(&self.code) {
            let limit =
                if self.is_test(function.first) { TEST_LINES_MAX } else { FUNCTION_LINES_MAX };
            let lines = function.last - function.first + 1;
            if lines > limit {
                let text = format!("fn {} has {lines} lines, at most {limit}", function.name);
                findings.push(self.finding(function.first, text));
            }
        }
    }

    fn leftovers(&self, findings: &mut Vec<Finding>) {
        for (index, line) in self.code.lines().enumerate() {
            for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
                if line.contains(word) {
                    findings.push(self.finding(index + 1, format!("{word} may not stay")));
                }
            }
        }
        for (index, line) in self.text.lines().enumerate() {
            let Some((_, comment)) = line.split_once("//") else { continue };
            for word in [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("X", "XX")] {
                if comment.split(|c: char| !c.is_alphanumeric()).any(|found| found == word) {
                    findings.push(self.finding(index + 1, format!("{word} may not stay")));
                }
            }
        }
    }

    /// `select!` picks at random unless told otherwise, and simulation must be repeatable.
    fn selects(&self, findings: &mut Vec<Finding>) {
        for (at, _) in self.code.match_indices("select!") {
            let rest = self.code[at + "select!".len()..].trim_start();
            let body = rest.strip_prefix('{').map(str::trim_start);
            if body.is_some_and(|body| !body.starts_with("biased;")) {
                let line = line_of(&self.code, at);
                findings.push(self.finding(line, "select! starts with `biased;`"));
            }
        }
    }

    fn unsafe_allowances(&self, findings: &mut Vec<Finding>) {
        if UNSAFE_ALLOWED.iter().any(|folder| self.path.starts_with(folder)) {
            return;
        }
        for (at, _) in self.code.match_indices("unsafe_code") {
            let line = line_of(&self.code, at);
            let text = format!("unsafe code only in {}", UNSAFE_ALLOWED.join(", "));
            findings.push(self.finding(line, text));
        }
    }
}

struct Function {
    name: String,
    first: usize,
    last: usize,
}

/// Functions with a body, nested ones too, with first and last line.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(rest) {
            let (first, last) = (line_of(code, at), line_of(code, at + 3 + end));
            found.push(Function { name, first, last });
        }
    }
    found
}

/// Offset of the brace that closes the body; `None` for a declaration without one.
fn body_end(signature: &str) -> Option<usize> {
    let (mut round, mut curly) = (0_usize, 0_usize);
    for (at, c) in signature.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round = round.saturating_sub(1),
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly = curly.checked_sub(1)?;
                if curly == 0 && round == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

const LINE_WIDTH_MAX: usize = 100;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// A table of cases may be longer than code, within reason.
const TEST_LINES_MAX: usize = 140;
const GENERATED: &str = "crates/shell/wire/src/generated";
/// The only crates that may call into the kernel or C directly.
const UNSAFE_ALLOWED: &[&str] =
    &["crates/shell/runtime", "crates/shell/shim", "crates/shell/network", "crates/shell/tunnel"];

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let long_function = format!("//! D.\nfn f() {{\n{}}}\n", "x();\n".repeat(70));
        let long_file = format!("//! D.\n{}", "// line\n".repeat(600));
        let wide = format!("//! D.\n// {}\n", "x".repeat(98));
        for (text, expected) in [
            ("fn f() {}\n", "a.rs:1: a module opens with //! docs: what it owns"),
            (long_function.as_str(), "a.rs:2: fn f has 72 lines, at most 70"),
            (long_file.as_str(), "a.rs:1: 601 lines without tests, at most 600"),
            (wide.as_str(), "a.rs:2: 101 characters wide, at most 100"),
            ("//! D.\nfn f() { todo!() }\n", "a.rs:2: todo! may not stay"),
            ("//! D.\nfn f() { select! { x } }\n", "a.rs:2: select! starts with `biased;`"),
            (concat!("//! D.\n// FIX", "ME: x\n"), concat!("a.rs:2: FIX", "ME may not stay")),
        ] {
            assert_eq!(texts("a.rs", text), [expected], "{text}");
        }
        let found = texts("a.rs", "//! D.\n#![allow(unsafe_code)]\n");
        assert!(found[0].starts_with("a.rs:2: unsafe code only in"), "{found:?}");
    }

    #[test]
    fn what_is_allowed_passes() {
        let tests = format!("//! D.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// x\n".repeat(700));
        for (path, text) in [
            ("a.rs", "//! D.\nfn f() { tokio::select! { biased; _ = x => {} } }\n"),
            ("a.rs", "//! D.\nfn f() { g(\"todo!()\") }\n"),
            ("a.rs", "#![allow(dead_code)]\n//! D.\ntrait T { fn f(&self); }\n"),
            ("a.rs", tests.as_str()),
            ("crates/shell/shim/src/lib.rs", "//! D.\n#![allow(unsafe_code)]\n"),
            ("crates/shell/wire/src/generated/x.rs", "fn f() { todo!() }\n"),
        ] {
            assert_eq!(texts(path, text), Vec::<String>::new(), "{path} {text}");
        }
    }
}
