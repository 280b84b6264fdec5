// Package definitions is the package into which openapi-gen writes the API's schemas as Go code
// (zz_generated.openapi.go, which is not in the repository).
//
// It must not be imported by a service: it is large, and a service needs only the documents
// generated from it.
package definitions
