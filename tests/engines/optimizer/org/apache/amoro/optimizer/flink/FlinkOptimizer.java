package org.apache.amoro.optimizer.flink;

import org.apache.amoro.optimizer.common.Optimizer;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.functions.source.RichSourceFunction;

/** An optimizer that is a Flink job; a task of it speaks to AMS. */
@SuppressWarnings("deprecation") // the older kind of source is much shorter
public final class FlinkOptimizer {
  private FlinkOptimizer() {}

  public static void main(String[] arguments) throws Exception {
    Optimizer optimizer = new Optimizer(arguments);
    StreamExecutionEnvironment environment = StreamExecutionEnvironment.getExecutionEnvironment();
    environment.setParallelism(1);
    environment
        .addSource(new Registration(optimizer), "registration")
        .returns(String.class)
        .sinkTo(new DiscardingSink<>());
    environment.execute("amoro-flink-optimizer-" + optimizer.resourceId());
  }

  /** Emits nothing; runs as long as the job does. */
  private static final class Registration extends RichSourceFunction<String> {
    private static final long serialVersionUID = 1L;
    private final Optimizer optimizer;
    private volatile boolean cancelled;

    private Registration(Optimizer optimizer) {
      this.optimizer = optimizer;
    }

    @Override
    public void run(SourceContext<String> context) throws InterruptedException {
      try {
        optimizer.run(getRuntimeContext().getJobInfo().getJobId().toString());
      } catch (InterruptedException interrupted) {
        if (!cancelled) {
          throw interrupted;
        }
      }
    }

    @Override
    public void cancel() {
      cancelled = true; // Flink interrupts the task right after this
    }
  }
}
