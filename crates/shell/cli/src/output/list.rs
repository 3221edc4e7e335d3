//! A list of objects, printed as `--format` and `--quiet` ask.
//!
//! Owns: `table`, `table TEMPLATE`, `json`, plain templates and lists of ids.
//! Does not know: objects; a row is the fields that templates may name.
//! Invariant: a table has its head line even when nothing is listed.

use std::io::Write;

use serde_json::{Map, Value as Json};

use super::table::align;
use super::template::Template;
use crate::args::ListFormat;
use crate::error::CliError;

/// The fields of one object, by the names that templates use.
pub(crate) type Row = Map<String, Json>;

/// The fields of a JSON object as a row.
pub(crate) fn row_of(object: Json) -> Row {
    match object {
        Json::Object(row) => row,
        _ => Row::new(),
    }
}

/// How one kind of object is listed.
pub(crate) struct List {
    /// The default format, after the word `table`.
    pub(crate) table: &'static str,
    /// Field and head of each column that can be named.
    pub(crate) heads: &'static [(&'static str, &'static str)],
    /// The field that `--quiet` prints.
    pub(crate) id: &'static str,
}

impl List {
    /// Prints `rows`; a template is checked before.
    pub(crate) fn print(
        &self,
        format: &ListFormat,
        rows: &[Row],
        out: &mut dyn Write,
    ) -> Result<(), CliError> {
        out.write_all(self.text(format, rows)?.as_bytes())?;
        Ok(())
    }

    fn text(&self, format: &ListFormat, rows: &[Row]) -> Result<String, CliError> {
        if format.quiet && format.format.is_none() {
            return Ok(rows.iter().map(|row| format!("{}\n", plain(row.get(self.id)))).collect());
        }
        let asked = format.format.as_deref().unwrap_or("table").trim();
        if asked == "json" {
            return Ok(rows.iter().map(|row| format!("{}\n", sorted(row))).collect());
        }
        match asked.strip_prefix("table") {
            Some("") => self.table_text(self.table, rows),
            Some(rest) if rest.starts_with([' ', '\t']) => self.table_text(rest.trim(), rows),
            _ => {
                let template = Template::parse(asked)?;
                let lines: Result<Vec<String>, CliError> =
                    rows.iter().map(|row| template.render(&Json::Object(row.clone()))).collect();
                Ok(lines?.iter().map(|line| format!("{line}\n")).collect())
            }
        }
    }

    fn table_text(&self, template: &str, rows: &[Row]) -> Result<String, CliError> {
        let template = Template::parse(template)?;
        let mut lines = vec![template.render(&Json::Object(self.head()))?];
        for row in rows {
            lines.push(template.render(&Json::Object(row.clone()))?.replace('\n', " "));
        }
        Ok(align(&lines))
    }

    fn head(&self) -> Row {
        self.heads.iter().map(|(field, head)| ((*field).into(), Json::from(*head))).collect()
    }
}

fn plain(value: Option<&Json>) -> String {
    match value {
        Some(Json::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// JSON with its keys in order, as Go writes maps.
fn sorted(row: &Row) -> String {
    let mut pairs: Vec<(&String, &Json)> = row.iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    let sorted: Row = pairs.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Json::Object(sorted).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: List = List {
        table: "{{.ID}}{{if .Self}} *{{else}}  {{end}}\t{{.Name}}",
        heads: &[("ID", "ID"), ("Name", "NAME"), ("Self", "")],
        id: "ID",
    };

    fn row(id: &str, name: &str, own: bool) -> Row {
        row_of(json!({ "Name": name, "ID": id, "Self": own }))
    }

    #[test]
    fn every_format() {
        let rows = [row("1", "web", true), row("2", "db", false)];
        for (format, quiet, expected) in [
            (None, false, "ID        NAME\n1 *       web\n2         db\n"),
            (None, true, "1\n2\n"),
            (Some("table {{.Name}}"), false, "NAME\nweb\ndb\n"),
            (Some("{{.Name}}!"), false, "web!\ndb!\n"),
            (Some("table"), false, "ID        NAME\n1 *       web\n2         db\n"),
            (
                Some("json"),
                false,
                "{\"ID\":\"1\",\"Name\":\"web\",\"Self\":true}\n\
                 {\"ID\":\"2\",\"Name\":\"db\",\"Self\":false}\n",
            ),
        ] {
            let format = ListFormat { format: format.map(str::to_owned), quiet };
            assert_eq!(LIST.text(&format, &rows).unwrap(), expected, "{format:?}");
        }
        let empty = ListFormat { format: None, quiet: false };
        assert_eq!(LIST.text(&empty, &[]).unwrap(), "ID        NAME\n");
    }
}
