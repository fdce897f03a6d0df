//! The OpenAPI 3.1 document: routes from `ROUTES`, schemas from the types themselves by the attributes
//! that serde reads, examples from values. Nothing in it is written a second time.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::answer::{Applied, Done, EachDone, Wrong};
use super::examples;
use super::routes::{Act, ROUTES, Route};
use crate::config::{Command, Listing, Query, proc};

/// The document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in &ROUTES {
        let operation = operation(route, &mut schemas);
        let method = route.method.name().to_lowercase();
        paths
            .entry(route.path)
            .or_default()
            .insert(method, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ulvs",
            "summary": "A Linux Virtual Server director in user space",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" }
        },
        "servers": [{
            "url": "http://ulvs",
            "description": "The control socket; the name of the host does not matter: \
                            curl --unix-socket /run/ulvs/control.sock http://ulvs/"
        }],
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) }
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let wrong = schemas.subschema_for::<Wrong>();
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "responses": {
            "200": answer(route, schemas),
            "default": {
                "description": "It was not done; error.code and error.message say why.",
                "content": { "application/json": { "schema": wrong } }
            }
        }
    });
    let parameters = parameters(route, schemas);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body(route, schemas) {
        operation["requestBody"] = body;
    }
    operation
}

/// `GET /v1/services/{service}` is `get-services-service`.
fn operation_id(route: &Route) -> String {
    let path = route.path.replace("/v1", "").replace(['{', '}'], "");
    let words = path
        .split(['/', '.'])
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>();
    let words = match words.is_empty() {
        true => "index".to_string(),
        false => words.join("-"),
    };
    format!("{}-{words}", route.method.name().to_lowercase())
}

fn parameters(route: &Route, schemas: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = |name: &str, schema: Value, example: Value| {
        json!({ "name": name, "in": "path", "required": true, "schema": schema,
                "example": example })
    };
    match route.act {
        Act::AskService => {
            let schema = schemas.subschema_for::<crate::lvs::ServiceKey>();
            vec![in_path("service", schema.into(), json!(examples::SERVICE))]
        }
        Act::ProcText => {
            let schema = json!({ "enum": proc::FILES });
            vec![in_path("file", schema, json!(proc::FILES[0]))]
        }
        Act::Do | Act::Each | Act::Apply => vec![json!({
            "name": "dry-run",
            "in": "query",
            "allowEmptyValue": true,
            "description": "Change nothing; only say what would be done or refused.",
            "schema": { "type": "boolean", "default": false }
        })],
        _ => Vec::new(),
    }
}

fn body(route: &Route, schemas: &mut SchemaGenerator) -> Option<Value> {
    let content = match route.act {
        Act::Do => {
            let named = examples::commands().into_iter().map(|command| {
                let value = json!(command);
                (tag(&value), json!({ "value": value }))
            });
            let named: Map<String, Value> = named.collect();
            json!({ "application/json": {
                "schema": schemas.subschema_for::<Command>(),
                "examples": named
            }})
        }
        Act::Each => json!({ "application/json": {
            "schema": schemas.subschema_for::<Vec<Command>>(),
            "example": examples::commands()
        }}),
        Act::Apply => json!({ "text/plain": {
            "schema": {
                "type": "string",
                "description": "ulvs.toml, or lines as ipvsadm-save prints them."
            },
            "examples": {
                "rules": { "value": examples::RULES },
                "toml": { "value": examples::TOML }
            }
        }}),
        _ => return None,
    };
    Some(json!({ "required": true, "content": content }))
}

/// The word by which one variant is told from the others.
fn tag(value: &Value) -> String {
    match value {
        Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
        other => other.as_str().unwrap_or_default().to_string(),
    }
}

fn answer(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let (kind, schema) = match &route.act {
        Act::Ask(query) => ("application/json", listing(query, schemas)),
        Act::AskService => ("application/json", listing(&Query::Services(None), schemas)),
        Act::Do | Act::Stop => ("application/json", of::<Done>(schemas)),
        Act::Each => ("application/json", of::<EachDone>(schemas)),
        Act::Apply => ("application/json", of::<Applied>(schemas)),
        Act::Examples => ("application/json", of::<Vec<Command>>(schemas)),
        Act::ProcFiles | Act::Schedulers => ("application/json", of::<Vec<String>>(schemas)),
        Act::OpenApi => ("application/json", json!({ "type": "object" })),
        Act::Rules | Act::Story | Act::ProcText | Act::Index => {
            ("text/plain", json!({ "type": "string" }))
        }
    };
    json!({ "description": "Done, or the answer.", "content": { kind: { "schema": schema } } })
}

fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().into()
}

/// The one variant of `Listing` that answers this query.
fn listing(query: &Query, schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<Listing>();
    let wanted = tag(&json!(query));
    let variants = schemas.definitions().get("Listing");
    let variants = variants.and_then(|schema| schema["oneOf"].as_array());
    let found = variants.into_iter().flatten();
    let mut found = found.filter(|variant| variant["properties"].get(&wanted).is_some());
    found
        .next()
        .cloned()
        .expect("a listing answers every query")
}
