//! The server over real HTTP, on each backend that is there. Modules are laid out like the routes.

mod applications;
mod authorization;
mod support;
