//! Floor C: the control API, JSON over HTTP. One router for the control socket now and for the console
//! later. It is handed one function, `Submit`, and knows nothing else of the director: it can do
//! nothing that a line on the control socket cannot do. docs/api.md shows it to people.

mod act;
mod answer;
mod bare;
mod counts;
mod examples;
mod openapi;
mod routes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawPathParams, Request};
use axum::http::StatusCode;
use axum::routing::{MethodFilter, on};
use hyper::rt::{Read, Write};
use hyper_util::service::TowerToHyperService;

pub use counts::DoorCounts;
pub use openapi::document;
pub use routes::{Method, ROUTES, Route};

use crate::config;
use act::Call;
use answer::Fault;
use bare::Bare;

/// Takes a request to the control plane; `None` if the director is stopping.
pub type Submit = Arc<dyn Fn(config::Request) -> Asking + Send + Sync>;
/// The reply, once it is there.
pub type Asking = Pin<Box<dyn Future<Output = Option<config::Reply>> + Send>>;

/// Longest head of an HTTP request (its first line and its headers) in bytes, and how much of a body is
/// held before it is looked at.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Most headers of a request.
pub const HEADERS_MAX: usize = 64;

/// What the router is made of.
#[derive(Clone)]
pub struct Api {
    /// The way to the control plane.
    pub submit: Submit,
    /// The names of the schedulers there are, for who sends a configuration.
    pub schedulers: &'static [&'static str],
    /// Where it is counted what could not be read.
    pub counts: Arc<DoorCounts>,
}

/// Every route of `ROUTES`, and an answer in JSON for everything else.
pub fn router(api: &Api) -> Router {
    let mut router = Router::new();
    for route in &ROUTES {
        let api = api.clone();
        let handler = async move |params: RawPathParams, request: Request| {
            let words = params.iter().map(|(_, word)| word.to_string()).collect();
            act::act(&api, Call { route, words }, request).await
        };
        router = router.route(route.path, on(filter(route.method), handler));
    }
    let (nowhere, other) = (Arc::clone(&api.counts), Arc::clone(&api.counts));
    router
        .fallback(async move |request: Request| {
            let path = request.uri().path();
            Fault::no_such_path(path).into_answer(&nowhere)
        })
        .method_not_allowed_fallback(async move |request: Request| {
            Fault::wrong_method(request.method().as_str()).into_answer(&other)
        })
}

const fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
    }
}

/// Serves one connection until its end. What is no HTTP is answered with status 400 and a close; who is
/// slow is the business of `io`.
pub async fn serve(io: impl Read + Write + Unpin, api: &Api) {
    let mut http = hyper::server::conn::http1::Builder::new();
    // Who has ended its own half still wants the answer.
    http.half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .header_read_timeout(None);
    let service = TowerToHyperService::new(router(api));
    if let Err(error) = http.serve_connection(Bare::new(io), service).await
        && (error.is_parse() || error.is_incomplete_message())
    {
        api.counts.bad_request();
    }
}

/// What a client gets that is not served at all, whatever it has asked for.
pub fn turned_away(no_right: bool, why: &str) -> Vec<u8> {
    match no_right {
        true => said_in_json(StatusCode::FORBIDDEN, "", "turned-away", why),
        false => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            said_in_json(status, "retry-after: 1\r\n", "turned-away", why)
        }
    }
}

/// A whole answer that says what is wrong, and that the connection closes.
fn said_in_json(status: StatusCode, headers: &str, code: &str, why: &str) -> Vec<u8> {
    let body = serde_json::json!({ "error": { "code": code, "message": why } });
    let body = format!("{body}\n");
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}content-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}
