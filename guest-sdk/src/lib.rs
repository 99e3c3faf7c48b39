//! (room under construction)
pub mod bindings {
    wit_bindgen::generate!({ path: ["../wit/inspect", "../wit/backup"], world: "ess:backup/component", generate_all, pub_export_macro: true });
}
