// Command schemagen prints the field manager's schema table.
package main

import (
	"fmt"
	"os"

	"keelson.dev/services/apiserver/internal/fieldmanager/schemagen"
)

func main() {
	if err := schemagen.Write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
