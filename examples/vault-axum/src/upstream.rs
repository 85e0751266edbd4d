//! Where data is forwarded to: one URL, given at start. Nothing of a caller's request but its message goes there, no key least of all.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, Url, redirect::Policy};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// The receiver.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client,
    url: Url,
}

/// What it answered.
#[derive(Debug, Serialize)]
pub struct Answered {
    status: u16,
    body: Value,
}

impl Upstream {
    /// The receiver at that URL, which has so long to answer.
    ///
    /// # Errors
    /// When it is no URL of HTTP, or no client can be had.
    pub fn new(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        let url = Url::parse(url).context("what to forward to is no URL")?;
        ensure!(
            matches!(url.scheme(), "http" | "https"),
            "what to forward to is no URL of HTTP"
        );
        // To that URL and to no other, whatever it answers and whatever the environment says of proxies.
        let client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self { client, url })
    }

    /// Forwards this.
    ///
    /// # Errors
    /// A failure when there is no answer in time, or one that is too large.
    pub async fn forward(&self, what: &impl Serialize) -> Result<Answered, Failure> {
        let mut response = self
            .client
            .post(self.url.clone())
            .json(what)
            .send()
            .await
            .map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Failure::upstream("The receiver's answer is too large."));
            }
            body.extend_from_slice(&chunk);
        }
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| text());
        Ok(Answered {
            status: response.status().as_u16(),
            body,
        })
    }
}

fn failed(error: reqwest::Error) -> Failure {
    if error.is_timeout() {
        Failure::too_slow()
    } else {
        Failure::upstream("The receiver cannot be reached.")
    }
}
