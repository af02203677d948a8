//! Pods and NetworkAttachmentDefinitions as a meta plugin reads them.
