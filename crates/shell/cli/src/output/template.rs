//! Go templates for `--format`, with docker's functions.
//!
//! Owns: parsing and rendering them, and turning JSON into their values.
//! Does not know: what is shown.
//! Invariant: a template that is wrong is refused before anything is printed.

use std::collections::HashMap;

use gtmpl_ng::{Context, Func, FuncError, Number, NumberKind, Value};
use serde_json::{Map, Value as Json};

use crate::error::CliError;

/// A parsed template.
pub(crate) struct Template {
    template: gtmpl_ng::Template,
    text: String,
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, CliError> {
        let text = unescape(text);
        let mut template = gtmpl_ng::Template::default();
        template.add_funcs(FUNCTIONS);
        template.parse(text.as_str()).map_err(|error| wrong(&text, &error.to_string()))?;
        Ok(Self { template, text })
    }

    /// The text for one object.
    pub(crate) fn render(&self, object: &Json) -> Result<String, CliError> {
        self.template
            .render(&Context::from(value(object, Shape::Struct)))
            .map_err(|error| wrong(&self.text, &error.to_string()))
    }
}

fn wrong(text: &str, message: &str) -> CliError {
    CliError::usage("--format", format!("template `{text}`: {message}"))
}

/// In docker's formats `\t` and `\n` stand for the characters.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// How an object of JSON looks to a template: the fields of a struct must exist, keys need not.
#[derive(Clone, Copy)]
enum Shape {
    Struct,
    Map,
}

fn value(json: &Json, shape: Shape) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => Value::Number(if let Some(whole) = number.as_u64() {
            Number::unsigned(whole)
        } else if let Some(whole) = number.as_i64() {
            Number::signed(whole)
        } else {
            Number::float(number.as_f64().unwrap_or(0.0))
        }),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => {
            Value::Array(items.iter().map(|item| value(item, Shape::Map)).collect())
        }
        Json::Object(entries) => {
            let entries: HashMap<String, Value> =
                entries.iter().map(|(key, item)| (key.clone(), value(item, Shape::Map))).collect();
            match shape {
                Shape::Struct => Value::Object(entries),
                Shape::Map => Value::Map(entries),
            }
        }
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::Bool(flag) => Json::Bool(*flag),
        Value::String(text) => Json::String(text.clone()),
        Value::Number(number) => match number.kind() {
            NumberKind::Unsigned(whole) => whole.into(),
            NumberKind::Signed(whole) => whole.into(),
            NumberKind::Float(number) => number.into(),
        },
        Value::Array(items) => Json::Array(items.iter().map(json_of).collect()),
        Value::Object(entries) | Value::Map(entries) => {
            let mut sorted: Vec<(&String, &Value)> = entries.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            let pairs = sorted.into_iter().map(|(key, item)| (key.clone(), json_of(item)));
            Json::Object(Map::from_iter(pairs))
        }
        _ => Json::Null,
    }
}

fn text_at<'a>(name: &str, args: &'a [Value], index: usize) -> Result<&'a str, FuncError> {
    match args.get(index) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(FuncError::Generic(format!("{name}: argument {} is no text", index + 1))),
        None => Err(FuncError::AtLeastXArgs(name.into(), index + 1)),
    }
}

fn count_at(name: &str, args: &[Value], index: usize) -> Result<usize, FuncError> {
    let number = match args.get(index) {
        Some(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    match number.and_then(|number| usize::try_from(number).ok()) {
        Some(number) if number <= WIDTH_MAX => Ok(number),
        _ => Err(FuncError::Generic(format!(
            "{name}: argument {} is no number from 0 to {WIDTH_MAX}",
            index + 1
        ))),
    }
}

fn json(args: &[Value]) -> Result<Value, FuncError> {
    let first = args.first().ok_or_else(|| FuncError::AtLeastXArgs("json".into(), 1))?;
    Ok(json_of(first).to_string().into())
}

fn join(args: &[Value]) -> Result<Value, FuncError> {
    let separator = text_at("join", args, 1)?;
    let Some(Value::Array(items)) = args.first() else {
        return Err(FuncError::Generic("join: argument 1 is no list".into()));
    };
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    Ok(texts.join(separator).into())
}

fn split(args: &[Value]) -> Result<Value, FuncError> {
    let (text, separator) = (text_at("split", args, 0)?, text_at("split", args, 1)?);
    Ok(Value::Array(text.split(separator).map(Value::from).collect()))
}

fn lower(args: &[Value]) -> Result<Value, FuncError> {
    Ok(text_at("lower", args, 0)?.to_lowercase().into())
}

fn upper(args: &[Value]) -> Result<Value, FuncError> {
    Ok(text_at("upper", args, 0)?.to_uppercase().into())
}

/// Go's `strings.Title`: each word begins with an upper-case letter.
fn title(args: &[Value]) -> Result<Value, FuncError> {
    let mut out = String::new();
    let mut begins = true;
    for c in text_at("title", args, 0)?.chars() {
        if begins {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        begins = !c.is_alphanumeric() && c != '_' && c != '\'';
    }
    Ok(out.into())
}

/// Spaces before and after, unless the text is empty.
fn pad(args: &[Value]) -> Result<Value, FuncError> {
    let text = text_at("pad", args, 0)?;
    let (before, after) = (count_at("pad", args, 1)?, count_at("pad", args, 2)?);
    if text.is_empty() {
        return Ok(text.into());
    }
    Ok(format!("{}{text}{}", " ".repeat(before), " ".repeat(after)).into())
}

fn truncate(args: &[Value]) -> Result<Value, FuncError> {
    let (text, length) = (text_at("truncate", args, 0)?, count_at("truncate", args, 1)?);
    Ok(text.chars().take(length).collect::<String>().into())
}

const FUNCTIONS: &[(&str, Func)] = &[
    ("json", json),
    ("join", join),
    ("split", split),
    ("lower", lower),
    ("upper", upper),
    ("title", title),
    ("pad", pad),
    ("truncate", truncate),
];
/// Wider than any terminal; it bounds what a template can ask for.
const WIDTH_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dockers_functions_work() {
        let object = json!({
            "Name": "web app", "List": ["a", "b"], "N": 3, "Labels": { "z": "1", "a": "2" },
            "Empty": "", "Yes": true,
        });
        for (template, expected) in [
            ("{{.Name}}", "web app"),
            ("{{json .Labels}}", r#"{"a":"2","z":"1"}"#),
            ("{{json .List}} {{json .N}} {{json .Name}}", r#"["a","b"] 3 "web app""#),
            ("{{join .List \", \"}}", "a, b"),
            ("{{upper .Name}} {{lower \"X\"}}", "WEB APP x"),
            ("{{title .Name}}", "Web App"),
            ("{{range split .Name \" \"}}<{{.}}>{{end}}", "<web><app>"),
            ("{{pad .Name 1 2}}|{{pad .Empty 1 1}}|", " web app  ||"),
            ("{{truncate .Name 3}}", "web"),
            ("{{println .N}}", "3\n"),
            ("{{if .Yes}}y{{else}}n{{end}}\\t{{index .Labels \"a\"}}", "y\t2"),
            ("{{.Labels.a}}{{range $k, $v := .Labels}} {{$k}}={{$v}}{{end}}", "2 a=2 z=1"),
            ("{{len .List}}", "2"),
        ] {
            let rendered = Template::parse(template).unwrap().render(&object).unwrap();
            assert_eq!(rendered, expected, "{template}");
        }
    }

    #[test]
    fn wrong_templates_are_usage_errors() {
        for template in ["{{.Name", "{{nosuch .Name}}", "{{pad .Name 1 99999999}}"] {
            let object = json!({ "Name": "x" });
            let error = Template::parse(template).and_then(|t| t.render(&object)).unwrap_err();
            assert!(error.message.starts_with("--format: template `"), "{error}");
        }
    }
}
