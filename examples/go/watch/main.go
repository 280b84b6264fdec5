// Watch prints the pods of a namespace and every change of them, also across broken connections:
//
//	go run ./watch shop
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cfg, err := client.FromKubeconfig("", "")
	if err != nil {
		log.Fatal(err)
	}
	cfg.UserAgent = "example-watch/1"
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if len(os.Args) > 1 {
		cfg.Namespace = os.Args[1]
	}
	if err := run(ctx, c, cfg.Namespace, os.Stdout); err != nil {
		log.Print(err)
	}
}

// run keeps the state of the namespace in a cache, which prints what changes.
func run(ctx context.Context, c *client.Client, namespace string, out io.Writer) error {
	pods := client.NewCache[*corev1.Pod](c, client.CacheOptions[*corev1.Pod]{Namespace: namespace})
	pods.Subscribe(func(ev client.Event[*corev1.Pod]) {
		fmt.Fprintln(out, ev.Type, ev.Object.Name, ev.Object.Status.Phase)
	})
	return pods.Run(ctx)
}
