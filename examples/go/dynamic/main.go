// Dynamic counts the objects of a resource that is named on the command line, by namespace:
//
//	go run ./dynamic deployments.v1.apps
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/client"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: dynamic RESOURCE.VERSION.GROUP")
	}
	cfg, err := client.FromKubeconfig("", "")
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := count(context.Background(), c, os.Args[1], os.Stdout); err != nil {
		log.Print(err)
	}
}

// count reads the collection a page at a time.
func count(ctx context.Context, c *client.Client, name string, out io.Writer) error {
	gvr, _ := schema.ParseResourceArg(name)
	if gvr == nil {
		gvr = &schema.GroupVersionResource{Version: "v1", Resource: name}
	}
	objects, err := client.Dynamic(c, *gvr)
	if err != nil {
		return err
	}
	n := map[string]int{}
	for obj, err := range objects.WithoutManagedFields().All(ctx, client.ListOptions{}) {
		if err != nil {
			return err
		}
		n[obj.GetNamespace()]++
	}
	_, err = fmt.Fprintln(out, n)
	return err
}
