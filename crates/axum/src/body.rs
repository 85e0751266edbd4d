//! The body of a request that is rejected.

use std::{pin::pin, time::Duration};

use axum::http::{HeaderMap, header::EXPECT};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, time::timeout};

/// The maximum number of bytes to read and discard: nginx's default for `client_max_body_size`.
const MAX_DISCARDED: usize = 1024 * 1024;
/// The maximum time to read and discard.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

/// Reads and discards the rest of the body, within limits, while the response is sent. Otherwise, the server
/// closes the connection, and a client that is still sending, such as nginx, may get a reset instead of the
/// response.
pub(crate) fn discard<B>(headers: &HeaderMap, body: B)
where
    B: Body<Data: Send, Error: Send> + Send + 'static,
{
    // A client that waits for 100 (Continue) sends no body after the response. Reading the body would make
    // the server send the 100.
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return;
    }
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    runtime.spawn(timeout(DISCARD_LIMIT, async move {
        let mut body = pin!(body);
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, bytes::Buf::remaining);
            if discarded > MAX_DISCARDED {
                break;
            }
        }
    }));
}
