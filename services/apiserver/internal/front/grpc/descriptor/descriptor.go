// Package descriptor contains the protobuf descriptors of Kubernetes' types, for server
// reflection: with them, tools such as grpcurl show a Pod as JSON.
//
// It must never register them globally, because they would conflict with descriptors of the same
// names in other programs.
package descriptor

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

//go:generate ./generate.sh

//go:embed kubernetes.binpb.gz
var compressed []byte

// kubernetes is decoded when it is first needed.
var kubernetes = sync.OnceValues(func() (*protoregistry.Files, error) {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("kubernetes descriptors: %w", err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("kubernetes descriptors: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("kubernetes descriptors: %w", err)
	}
	return protodesc.NewFiles(&set)
})

// Resolver resolves Kubernetes' types and everything that is registered in the process.
type Resolver struct{}

var _ protodesc.Resolver = Resolver{}

// FindFileByPath implements protodesc.Resolver.
func (Resolver) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	return find(path, (*protoregistry.Files).FindFileByPath)
}

// FindDescriptorByName implements protodesc.Resolver.
func (Resolver) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	return find(name, (*protoregistry.Files).FindDescriptorByName)
}

func find[K, V any](key K, in func(*protoregistry.Files, K) (V, error)) (V, error) {
	found, err := in(protoregistry.GlobalFiles, key)
	if !errors.Is(err, protoregistry.NotFound) {
		return found, err
	}
	own, err := kubernetes()
	if err != nil {
		var none V
		return none, err
	}
	return in(own, key)
}
