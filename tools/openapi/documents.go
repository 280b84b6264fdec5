//go:build documents

package main

import (
	"keelson.dev/tools/openapi/internal/definitions"
	"keelson.dev/tools/openapi/internal/document"
)

func init() {
	write = func(table []document.Resource, dir string) error {
		return document.Write(table, definitions.GetOpenAPIDefinitions, dir)
	}
}
