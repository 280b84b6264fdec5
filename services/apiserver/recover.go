package main

import (
	"context"
	"log/slog"
	"path/filepath"

	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// recoverStores turns the stores on this member's disk into stores of one member. It can be
// repeated if it was interrupted: etcd, without which nothing starts, comes last.
func recoverStores(ctx context.Context, cfg *config, id *identity.Source) error {
	if !etcd.HasData(etcdDir(cfg)) {
		return boot.Invalid("--recover: --data-dir %s contains no data of a member", cfg.dataDir)
	}
	transient, err := raft.Recover(raft.Config{Name: cfg.name, Dir: filepath.Join(cfg.dataDir, "raft")})
	if err != nil {
		return err
	}
	config := etcd.EmbeddedConfig{Name: cfg.name, Dir: etcdDir(cfg)}
	if len(cfg.EtcdPeers) > 0 {
		peer, err := cfg.peerTLS(ctx, id)
		if err != nil {
			return err
		}
		config.Peers = &etcd.PeerConfig{Members: cfg.EtcdPeers, Identity: peer}
	}
	lasting, err := etcd.Recover(ctx, config)
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "recovered", "member", cfg.name, "revision", int64(lasting), "transient", int64(transient))
	return nil
}
