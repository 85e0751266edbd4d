//! The same application in axum and in actix-web, over real HTTP: the same decisions, the same answers.

mod apps;
mod cors;
mod decisions;
mod elsewhere;
mod programs;
mod raw;
