//go:build peers

package consulstore_test

import (
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
)

func TestServersShareARealConsul(t *testing.T) { testServersShare(t, consultest.NewReal(t, "").URL()) }
