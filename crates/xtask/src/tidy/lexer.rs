//! Blanks comments and literals out of Rust source, keeping every line break and column.
//!
//! Owns: just enough of Rust's lexical grammar (nested comments, raw strings, lifetimes).
//! Does not know: syntax; the checks work on the blanked text.
//! Invariant: the output has exactly as many characters and line breaks as the input.

/// `text` with the content of comments, strings and characters replaced by spaces.
pub(crate) fn blank(text: &str) -> String {
    let mut lexer = Lexer { input: text.chars().collect(), at: 0, out: String::new() };
    lexer.run();
    lexer.out
}

struct Lexer {
    input: Vec<char>,
    at: usize,
    out: String,
}

impl Lexer {
    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(),
                ('\'', _) => self.quote(),
                ('r', Some('"' | '#')) if !self.after_word() && self.raw_hashes(1).is_some() => {
                    self.raw_string(1);
                }
                ('b' | 'c', Some('r')) if !self.after_word() && self.raw_hashes(2).is_some() => {
                    self.raw_string(2);
                }
                _ => self.keep(),
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.input.get(self.at + ahead).copied()
    }

    /// Copies one character.
    fn keep(&mut self) {
        if let Some(c) = self.peek(0) {
            self.out.push(c);
            self.at += 1;
        }
    }

    /// Replaces one character by a space; line breaks stay.
    fn erase(&mut self) {
        if let Some(c) = self.peek(0) {
            self.out.push(if c == '\n' { '\n' } else { ' ' });
            self.at += 1;
        }
    }

    fn after_word(&self) -> bool {
        self.at > 0 && self.input.get(self.at - 1).is_some_and(|c| c.is_alphanumeric() || *c == '_')
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.erase();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => depth += 1,
                (Some('*'), Some('/')) => depth -= 1,
                (None, _) => return,
                _ => {
                    self.erase();
                    continue;
                }
            }
            self.erase();
            self.erase();
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.keep();
        while let Some(c) = self.peek(0) {
            match c {
                '\\' => {
                    self.erase();
                    self.erase();
                }
                '"' => return self.keep(),
                _ => self.erase(),
            }
        }
    }

    /// A character literal, or a lifetime, which is kept.
    fn quote(&mut self) {
        let literal = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        self.keep();
        if !literal {
            return;
        }
        if self.peek(0) == Some('\\') {
            self.erase();
            self.erase();
        }
        while self.peek(0).is_some_and(|c| c != '\'') {
            self.erase();
        }
        self.keep();
    }

    /// Number of `#` of the raw string whose prefix is `prefix` characters long, if it is one.
    fn raw_hashes(&self, prefix: usize) -> Option<usize> {
        let hashes = (prefix..).take_while(|ahead| self.peek(*ahead) == Some('#')).count();
        (self.peek(prefix + hashes) == Some('"')).then_some(hashes)
    }

    fn raw_string(&mut self, prefix: usize) {
        let hashes = self.raw_hashes(prefix).unwrap_or(0);
        for _ in 0..=prefix + hashes {
            self.keep();
        }
        while self.peek(0).is_some() {
            let closes =
                self.peek(0) == Some('"') && (1..=hashes).all(|n| self.peek(n) == Some('#'));
            if closes {
                for _ in 0..=hashes {
                    self.keep();
                }
                return;
            }
            self.erase();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (input, output) in [
            ("a // {\nb", "a     \nb"),
            ("a /* { /* } */ } */ b", "a                   b"),
            ("f(\"{\\\"\")", "f(\"   \")"),
            ("f('{', '\\'', '\\n')", "f(' ', '  ', '  ')"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("r#\"{\"}\"# + x", "r#\"   \"# + x"),
            ("br\"{\" y", "br\" \" y"),
            ("bar\"{\"", "bar\" \""),
        ] {
            assert_eq!(blank(input), output, "{input}");
        }
    }
}
