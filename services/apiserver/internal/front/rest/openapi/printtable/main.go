// Command printtable prints the table of kinds for the generator of the OpenAPI
// documents. It is part of `make gen` and of no program.
package main

import (
	"encoding/json"
	"log"
	"os"

	"keelson.dev/services/apiserver/internal/front/rest/openapi"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

func main() {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "\t")
	if err := enc.Encode(openapi.Resources(resource.NewTable(kind.All()...))); err != nil {
		log.Fatal(err)
	}
}
