//! As much of JSON Schema as the document uses: enough to find an answer that is not what it says.

use serde_json::Value;

/// Keywords that only describe.
const ANNOTATIONS: [&str; 5] = ["title", "description", "format", "default", "examples"];

/// Looks whether `value` is what `schema` of `document` says; else where, and why not.
pub fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(keywords) = schema.as_object() else {
        return match schema {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("{at}: nothing may stand here, but {value}")),
        };
    };
    for (keyword, wanted) in keywords {
        let fine = match keyword.as_str() {
            "$ref" => {
                let target = wanted.as_str().and_then(|target| target.strip_prefix('#'));
                let target = document.pointer(target.expect("inside the document"));
                check(document, target.expect("a target"), value, at)?;
                true
            }
            "type" => is_of(wanted, value),
            "const" => wanted == value,
            "enum" => wanted.as_array().unwrap().contains(value),
            "oneOf" | "anyOf" => {
                let fits = |one: &&Value| check(document, one, value, at).is_ok();
                let count = wanted.as_array().unwrap().iter().filter(fits).count();
                count == 1 || keyword == "anyOf" && count > 1
            }
            "minimum" => value
                .as_f64()
                .is_none_or(|number| number >= wanted.as_f64().unwrap()),
            "maximum" => value
                .as_f64()
                .is_none_or(|number| number <= wanted.as_f64().unwrap()),
            "minItems" => value
                .as_array()
                .is_none_or(|all| all.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value
                .as_array()
                .is_none_or(|all| all.len() as u64 <= wanted.as_u64().unwrap()),
            "required" => wanted.as_array().unwrap().iter().all(|name| {
                value
                    .as_object()
                    .is_none_or(|fields| fields.contains_key(name.as_str().unwrap()))
            }),
            "properties" | "items" | "prefixItems" | "additionalProperties" => {
                check_within(document, keywords, keyword, value, at)?;
                true
            }
            "pattern" => true,
            other => {
                assert!(
                    ANNOTATIONS.contains(&other),
                    "{at}: keyword {other} is new here"
                );
                true
            }
        };
        if !fine {
            return Err(format!("{at}: {keyword} {wanted} is not {value}"));
        }
    }
    Ok(())
}

/// What stands in an object or an array.
fn check_within(
    document: &Value,
    keywords: &serde_json::Map<String, Value>,
    keyword: &str,
    value: &Value,
    at: &str,
) -> Result<(), String> {
    let wanted = &keywords[keyword];
    let none = serde_json::Map::new();
    let known = keywords
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let fields = value.as_object().into_iter().flatten();
    let mut items = value.as_array().into_iter().flatten().enumerate();
    match keyword {
        "properties" => fields
            .filter_map(|(name, field)| Some((name, known.get(name)?, field)))
            .try_for_each(|(name, schema, field)| {
                check(document, schema, field, &format!("{at}.{name}"))
            }),
        "additionalProperties" => fields
            .filter(|(name, _)| !known.contains_key(*name))
            .try_for_each(|(name, field)| check(document, wanted, field, &format!("{at}.{name}"))),
        "prefixItems" => {
            items
                .zip(wanted.as_array().unwrap())
                .try_for_each(|((place, item), schema)| {
                    check(document, schema, item, &format!("{at}[{place}]"))
                })
        }
        _ => items
            .try_for_each(|(place, item)| check(document, wanted, item, &format!("{at}[{place}]"))),
    }
}

fn is_of(kinds: &Value, value: &Value) -> bool {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match kinds {
        Value::Array(kinds) => kinds.iter().any(|wanted| wanted == kind),
        one => one == kind,
    }
}
