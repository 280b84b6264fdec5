// Package definitions is where openapi-gen writes the Go form of the API's schemas
// (zz_generated.openapi.go, which is not kept in the repository).
//
// It must never be imported by a service: it is large, and the documents made of
// it are all that a service needs.
package definitions
