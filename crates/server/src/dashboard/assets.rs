//! Style, script and icon. They are part of the binary, and each URL contains a version, so that browsers cache them.

use std::sync::LazyLock;

use actix_web::{HttpRequest, get, web};
use tollkey_core::Problem;

use crate::{rejection::HandlerResult, static_file::StaticFile};

struct Asset {
    name: &'static str,
    file: StaticFile,
}

impl Asset {
    /// The first 12 digits of the hash of the content.
    fn version(&self) -> &str {
        &self.file.hash()[..12]
    }
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let asset = |name, content_type: &'static str, content: &'static str| {
        let content = web::Bytes::from_static(content.as_bytes());
        Asset {
            name,
            file: StaticFile::new(content_type, content),
        }
    };
    vec![
        asset(
            "style.css",
            "text/css; charset=utf-8",
            include_str!("../../assets/style.css"),
        ),
        asset(
            "dashboard.js",
            "text/javascript; charset=utf-8",
            include_str!("../../assets/dashboard.js"),
        ),
        asset(
            "htmx.min.js",
            "text/javascript; charset=utf-8",
            include_str!("../../assets/htmx.min.js"),
        ),
        asset(
            "icon.svg",
            "image/svg+xml",
            include_str!("../../assets/icon.svg"),
        ),
    ]
});

pub(super) fn url(name: &str) -> String {
    let version = ASSETS
        .iter()
        .find(|asset| asset.name == name)
        .map_or("", Asset::version);
    format!("/dashboard/assets/{version}/{name}")
}

/// Not cached for another version: during a rolling update a page of one server can load another one's asset.
#[get("/assets/{version}/{name}")]
pub(super) async fn file(request: HttpRequest, path: web::Path<(String, String)>) -> HandlerResult {
    let (version, name) = path.into_inner();
    let asset = ASSETS
        .iter()
        .find(|asset| asset.name == name)
        .ok_or_else(Problem::not_found)?;
    let kept = if version == asset.version() {
        "public, max-age=31536000, immutable"
    } else {
        "no-store"
    };
    Ok(asset.file.respond(&request, kept).await)
}
