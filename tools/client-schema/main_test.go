package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

// TestTheCheckedInSchemaIsCurrent compares clients/kubernetes.json with the Go types.
func TestTheCheckedInSchemaIsCurrent(t *testing.T) {
	want, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../clients/kubernetes.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("clients/kubernetes.json is not what the types of k8s.io say: run make gen")
	}
}

func TestFieldsOfAVolume(t *testing.T) {
	data, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	var s Schema
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	v := s.Messages["k8s.io.api.core.v1.Volume"]
	if v == nil || len(v.Inline) != 1 || v.Inline[0] != "volumeSource" || len(v.Required) != 1 || v.Required[0] != "name" {
		t.Errorf("Volume is %+v, want an inline volumeSource and a required name", v)
	}
}
