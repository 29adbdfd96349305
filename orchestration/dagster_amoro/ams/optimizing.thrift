// The one call of AMS's optimizing service that is made here. AMS names the service
// OptimizeManager when it multiplexes (amoro_optimizing_service.thrift, 0.7 and later).
service OptimizingService {
    void ping()
}
