package server

import (
	"fmt"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// notes say what a pair's stage does not prove. What is of the callee is worked out once
// and kept in known.
func (s *Server) notes(b *books, row *api.Pair, entries *config.Set, known map[string][]string, now time.Time) []string {
	mode := entries.MutualTLSMode(row.Destination)
	if row.Entry == "" && mode != config.MutualTLSStrict {
		return []string{"nothing was shifted: whether the app's own port can be reached past the sidecar nobody has asked"}
	}
	if list, ok := known[row.Destination]; ok {
		return list
	}
	var list []string
	switch mode {
	case config.MutualTLSPermissive:
		if entries.Intentions(row.Destination) != nil || entries.Intentions(config.Wildcard) != nil {
			list = append(list, "intentions hold for plaintext by host, unproven")
		}
	case config.MutualTLSStrict:
		open, first := 0, ""
		for _, in := range b.snap.Connect(row.Destination) {
			if in.Service.Kind != catalog.ConnectProxy {
				continue
			}
			if why := s.pastSidecar(in, now); why != "" {
				if open++; open == 1 {
					first = why
				}
			}
		}
		if open > 0 {
			list = append(list, fmt.Sprintf("strict, but of %d instances it is not sure that nobody gets past their sidecars: %s", open, first))
		}
	}
	known[row.Destination] = list
	return list
}
