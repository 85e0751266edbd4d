//! `embed_migrations!` reads the migrations while compiling; without this cargo would not see them change.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
