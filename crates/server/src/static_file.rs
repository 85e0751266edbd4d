//! Files that are the same for every client: the OpenAPI document, Swagger UI, and the assets of the dashboard.
//!
//! A file is compressed once, at its first request. Each representation has a strong `ETag`, and a client that has it
//! gets 304. Nothing else is ever compressed: the length of a compressed response with a secret could reveal the secret
//! to somebody who controls another part of the response.

use std::io::Write as _;

use actix_web::{
    HttpRequest, HttpResponse, body,
    http::{
        StatusCode,
        header::{self, AcceptEncoding, Encoding, EntityTag, Header as _, IfNoneMatch},
    },
    web::Bytes,
};
use aws_lc_rs::digest;
use flate2::{Compression, write::GzEncoder};
use tollkey_core::{Problem, hex};

use crate::transport::SharedBody;

/// `Cache-Control` of a file whose URL stays the same when its content changes.
pub const REVALIDATED: &str = "no-cache";

#[derive(Debug)]
pub struct StaticFile {
    content_type: String,
    identity: Representation,
    /// `None` if it would not be shorter.
    gzip: Option<Representation>,
}

#[derive(Debug)]
struct Representation {
    bytes: Bytes,
    tag: EntityTag,
}

impl Representation {
    /// `suffix` distinguishes the encodings of a file, whose bytes differ.
    fn new(bytes: Bytes, hash: &str, suffix: &str) -> Self {
        Self {
            bytes,
            tag: EntityTag::new_strong(format!("{hash}{suffix}")),
        }
    }
}

impl StaticFile {
    /// Creates the content and compresses it, on a thread for blocking work.
    pub async fn prepare(
        content_type: String,
        create: impl FnOnce() -> Bytes + Send + 'static,
    ) -> Result<Self, Problem> {
        let prepare = move || {
            let bytes = create();
            let hash = hash(&bytes);
            let compressed = gzip(&bytes).filter(|compressed| compressed.len() < bytes.len());
            Self {
                content_type,
                identity: Representation::new(bytes, &hash, ""),
                gzip: compressed
                    .map(|compressed| Representation::new(compressed.into(), &hash, "-gzip")),
            }
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        prepared.map_err(|error| {
            tracing::error!(%error, "cannot prepare a static file");
            Problem::internal()
        })
    }

    /// For a short content that is created for each request.
    #[must_use]
    pub fn uncompressed(content_type: String, bytes: Bytes) -> Self {
        let hash = hash(&bytes);
        Self {
            content_type,
            identity: Representation::new(bytes, &hash, ""),
            gzip: None,
        }
    }

    /// Responds with the representation that the request prefers, or with 304 if the client has it.
    #[must_use]
    pub fn respond(&self, request: &HttpRequest, cache_control: &'static str) -> HttpResponse {
        let gzip = self.gzip.as_ref().filter(|_| accepts_gzip(request));
        let Representation { bytes, tag } = gzip.unwrap_or(&self.identity);
        let is_current = match IfNoneMatch::parse(request) {
            Ok(IfNoneMatch::Any) => true,
            Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|own| own.weak_eq(tag)),
            Err(_) => false,
        };
        let mut response = HttpResponse::build(if is_current {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        });
        response
            .insert_header((header::CACHE_CONTROL, cache_control))
            .insert_header((header::ETAG, tag.to_string()))
            .insert_header((header::VARY, "Accept-Encoding"));
        if is_current {
            // Without a Content-Length, which would be that of the file.
            return response.body(body::None::new());
        }
        response.content_type(self.content_type.as_str());
        if gzip.is_some() {
            response.insert_header((header::CONTENT_ENCODING, "gzip"));
        }
        SharedBody::of(response, bytes.clone())
    }
}

fn accepts_gzip(request: &HttpRequest) -> bool {
    let supported = [Encoding::gzip(), Encoding::identity()];
    AcceptEncoding::parse(request)
        .ok()
        .and_then(|accepted| accepted.negotiate(supported.iter()))
        .is_some_and(|encoding| encoding == Encoding::gzip())
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(&digest::digest(&digest::SHA256, bytes).as_ref()[..16])
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}
