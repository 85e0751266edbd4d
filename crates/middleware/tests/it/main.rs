//! The same application in axum and in actix-web, over real HTTP: the same decisions, the same answers.

mod apps;
mod cors;
#[expect(dead_code, reason = "one column is about the server's other routes")]
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
