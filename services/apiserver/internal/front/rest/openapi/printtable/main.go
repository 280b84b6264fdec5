// Command printtable prints the table of kinds for the generator of the OpenAPI documents. Only
// `make gen` uses it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"keelson.dev/services/apiserver/internal/front/rest/openapi"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

func main() {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "\t")
	if err := enc.Encode(openapi.Resources(resource.NewTable(kind.All()...))); err != nil {
		fmt.Fprintln(os.Stderr, "printtable:", err)
		os.Exit(1)
	}
}
