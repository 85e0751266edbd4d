//! The receiver of forwarded data: one URL, set at start. It gets the message of a caller's request, and never the key.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, Url, redirect::Policy};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// The maximum size of the receiver's response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// The receiver.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client,
    url: Url,
}

/// The receiver's response.
#[derive(Debug, Serialize)]
pub struct UpstreamResponse {
    status: u16,
    body: Value,
}

impl Upstream {
    /// Creates a receiver at this URL, which must respond within `timeout`.
    ///
    /// # Errors
    /// If the URL is not an HTTP URL, or the HTTP client cannot be built.
    pub fn new(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        let url = Url::parse(url).context("FORWARD_TO is not a URL")?;
        ensure!(
            matches!(url.scheme(), "http" | "https"),
            "FORWARD_TO is not an HTTP URL"
        );
        // No redirects and no proxies: data goes to this URL only.
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self { client, url })
    }

    /// Forwards data.
    ///
    /// # Errors
    /// 504 if the response does not arrive in time, 502 if it is too large or the receiver cannot be reached.
    pub async fn forward(&self, data: &impl Serialize) -> Result<UpstreamResponse, Failure> {
        let mut response = self
            .client
            .post(self.url.clone())
            .json(data)
            .send()
            .await
            .map_err(failure)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failure)? {
            if body.len() + chunk.len() > MAX_RESPONSE {
                return Err(Failure::upstream("The receiver's response is too large."));
            }
            body.extend_from_slice(&chunk);
        }
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| text());
        Ok(UpstreamResponse {
            status: response.status().as_u16(),
            body,
        })
    }
}

fn failure(error: reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::too_slow()
    } else {
        Failure::upstream("The receiver cannot be reached.")
    }
}
