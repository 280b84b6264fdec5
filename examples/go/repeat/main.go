// Repeat creates one object with a generated name, however often its answer is lost:
//
//	go run ./repeat shop
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

func main() {
	cfg, err := client.FromKubeconfig("", "")
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.Dial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if len(os.Args) > 1 {
		cfg.Namespace = os.Args[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	order, err := create(ctx, c, cfg.Namespace)
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(order.Name)
}

// create repeats the create, with the same id, until a server answers.
func create(ctx context.Context, c *client.Client, namespace string) (*corev1.ConfigMap, error) {
	order := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "order-"}}
	id := client.RequestID(rand.Text())
	for {
		made, err := client.For[*corev1.ConfigMap](c).Create(ctx, order, id)
		if err == nil || ctx.Err() != nil || !client.IsUnavailable(err) && !apierrors.IsTimeout(err) {
			return made, err
		}
	}
}
