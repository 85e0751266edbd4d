//! The same application in axum and in actix-web, over real HTTP: the same decisions, the same answers.

mod apps;
mod cors;
mod decisions;
mod elsewhere;
mod handlers;
mod layers;
mod programs;
mod raw;
mod threads;
mod warnings;
