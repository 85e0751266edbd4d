//! Tests of the same application in axum and in actix-web: both make the same decisions and send the same responses.

mod apps;
mod cors;
#[expect(
    dead_code,
    reason = "only the tests of the server use one of the columns"
)]
#[path = "../../../core/tests/it/credential_forms.rs"]
mod credential_forms;
mod credentials;
mod decisions;
mod elsewhere;
mod handlers;
mod layers;
mod programs;
mod raw;
mod threads;
mod warnings;
