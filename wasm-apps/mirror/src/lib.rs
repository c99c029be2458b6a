//! Answers each request with its own body, and with its method and target as header fields: the
//! server that the HTTP programs of wasmtime's WASI suite expect (`../wasi-suite`).

use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::{spawn_local, wit_future, wit_stream};

wasip3::http::service::export!(Mirror);

struct Mirror;

impl wasip3::exports::http::handler::Guest for Mirror {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_else(|| "/".to_owned());
        let mut fields = vec![
            ("x-wasmtime-test-method".to_owned(), name(request.get_method()).into_bytes()),
            ("x-wasmtime-test-uri".to_owned(), target.into_bytes()),
        ];
        let length = request.get_headers().get("content-length").into_iter().next();
        fields.extend(length.map(|length| ("content-length".to_owned(), length)));
        let (_writer, accepted) = wit_future::new(|| Ok(()));
        let (body, trailers) = Request::consume_body(request, accepted);
        let (mut writer, mirrored) = wit_stream::new();
        // All of it first: some clients read nothing before they have sent everything.
        let whole = body.collect().await;
        spawn_local(async move {
            // A client that went away wants no more of it.
            let _unread = writer.write_all(whole).await;
        });
        let headers = Fields::from_list(&fields).map_err(|_| ErrorCode::InternalError(None))?;
        let (response, _sent) = Response::new(headers, Some(mirrored), trailers);
        Ok(response)
    }
}

fn name(method: Method) -> String {
    match method {
        Method::Get => "GET".to_owned(),
        Method::Head => "HEAD".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Delete => "DELETE".to_owned(),
        Method::Connect => "CONNECT".to_owned(),
        Method::Options => "OPTIONS".to_owned(),
        Method::Trace => "TRACE".to_owned(),
        Method::Patch => "PATCH".to_owned(),
        Method::Other(name) => name,
    }
}
