package main

import (
	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/deployment"
	"keelson.dev/services/controller-manager/internal/nodecidr"
	"keelson.dev/services/controller-manager/internal/replicaset"
	"keelson.dev/services/controller-manager/internal/rootca"
	"keelson.dev/services/controller-manager/internal/serviceaccount"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/identity"
)

func newMetadata(*client.Client) []cluster.Cache { return nil }

// catalogue lists the controllers, new for each term of leadership.
func (o *options) catalogue(s *cluster.Cluster, _ []cluster.Cache, id *identity.Source) ([]controller.Controller, error) {
	ranges, err := nodecidr.New(s, nodecidr.Config{Prefixes: o.prefixes, Bits4: o.nodeCIDRBits, Bits6: o.nodeCIDRBits6})
	if err != nil {
		return nil, boot.Invalid("--node-cidr-mask-size: %w", err)
	}
	return []controller.Controller{
		deployment.New(s),
		replicaset.New(s),
		serviceaccount.New(s),
		rootca.New(s, func() []byte { return id.Current().RootsPEM }),
		ranges,
	}, nil
}
