// Command openapi writes the OpenAPI documents that the apiserver embeds. It is run by `make
// gen`, after openapi-gen has written package definitions.
//
//	openapi packages < table.json            prints the Go packages whose types are needed
//	openapi documents --out DIR < table.json writes the documents (needs the build tag "documents")
//
// The documents must only describe what is in the table.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"

	"keelson.dev/tools/openapi/internal/document"
)

// write writes the documents. It is set in builds with the definitions.
var write func(table []document.Resource, dir string) error

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: openapi packages|documents")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	out := flags.String("out", "", "directory to write to")
	_ = flags.Parse(os.Args[2:]) // exits on errors
	var table []document.Resource
	if err := json.NewDecoder(os.Stdin).Decode(&table); err != nil {
		log.Fatalf("read the table: %v", err)
	}
	switch os.Args[1] {
	case "packages":
		for _, p := range document.Packages(table) {
			fmt.Println(p)
		}
	case "documents":
		if write == nil {
			log.Fatal("built without the definitions: run openapi-gen and build with -tags documents")
		}
		if err := write(table, *out); err != nil {
			log.Fatal(err)
		}
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
}
