//! The `virtsim` program.

fn main() {
    virtsim::runtime::init::run_if_asked();
}
