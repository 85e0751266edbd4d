//! Files that are the same for every client: the OpenAPI document, Swagger UI, and the assets of the dashboard.
//!
//! A file is compressed once, for the first client that accepts gzip. Each representation has a
//! strong `ETag`, and a client that has it gets 304. Nothing else is ever compressed: the length of a
//! compressed response with a secret could reveal the secret to an attacker who controls another part
//! of the response.

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
use tokio::sync::OnceCell;
use tollkey_core::hex;

use crate::transport::SharedBody;

/// `Cache-Control` of a file whose URL stays the same when its content changes.
pub const REVALIDATED: &str = "no-cache";

#[derive(Debug)]
pub struct StaticFile {
    content_type: String,
    identity: Representation,
    /// `None` if it would not be shorter.
    gzip: OnceCell<Option<Representation>>,
}

#[derive(Debug)]
struct Representation {
    bytes: Bytes,
    tag: EntityTag,
}

impl StaticFile {
    #[must_use]
    pub fn new(content_type: impl Into<String>, bytes: Bytes) -> Self {
        let hash = digest::digest(&digest::SHA256, &bytes);
        let tag = EntityTag::new_strong(hex::encode(&hash.as_ref()[..16]));
        Self {
            content_type: content_type.into(),
            identity: Representation { bytes, tag },
            gzip: OnceCell::new(),
        }
    }

    /// Returns the hash of the content, in hexadecimal.
    pub fn hash(&self) -> &str {
        self.identity.tag.tag()
    }

    /// Compresses the file on a thread for blocking work. The encodings have different tags, because their bytes differ.
    async fn compressed(&self) -> Option<&Representation> {
        let compress = || async {
            let bytes = self.identity.bytes.clone();
            let compressed = tokio::task::spawn_blocking(move || gzip(&bytes)).await;
            let compressed = compressed.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot compress a static file");
                None
            });
            compressed.map(|bytes| Representation {
                bytes: bytes.into(),
                tag: EntityTag::new_strong(format!("{}-gzip", self.hash())),
            })
        };
        self.gzip.get_or_init(compress).await.as_ref()
    }

    /// Responds with the representation that the request prefers, or with 304 if the client has it.
    pub async fn respond(
        &self,
        request: &HttpRequest,
        cache_control: &'static str,
    ) -> HttpResponse {
        let gzip = if accepts_gzip(request) {
            self.compressed().await
        } else {
            None
        };
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

/// Returns `None` if the result is not shorter.
fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() < bytes.len()).then_some(compressed)
}
