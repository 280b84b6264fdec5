package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
)

// A pod lists the pods of its namespace, over gRPC on the port that kubectl uses, with
// the token of its service account.
func ExampleDial() {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		log.Fatal(err)
	}
	namespace, err := os.ReadFile(account + "namespace")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c, err := client.Dial(client.Config{
		Endpoints: []string{"kubernetes.default.svc:443"},
		TLS:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		Token:     client.TokenFile(account + "token"),
		UserAgent: "example/1",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	pods, _, err := client.For[*corev1.Pod](c).List(context.Background(), client.ListOptions{Namespace: string(namespace)})
	if err != nil {
		log.Print(err)
		return
	}
	for _, pod := range pods {
		fmt.Println(pod.Name, pod.Status.Phase)
	}
}
