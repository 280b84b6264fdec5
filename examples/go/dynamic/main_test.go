package main

import (
	"bytes"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

func TestCount(t *testing.T) {
	c := clienttest.Start(t)
	for _, namespace := range []string{"a", "a2", "b"} {
		web := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace[:1], Name: "web" + namespace}}
		if _, err := client.For[*appsv1.Deployment](c).Create(t.Context(), web); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := count(t.Context(), c, "deployments.v1.apps", &out); err != nil || out.String() != "map[a:2 b:1]\n" {
		t.Errorf("got %q %v", out.String(), err)
	}
	if err := count(t.Context(), c, "things.v1.example.com", &out); err == nil {
		t.Error("an unknown resource was accepted")
	}
}
