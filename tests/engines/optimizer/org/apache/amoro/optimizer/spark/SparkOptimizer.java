package org.apache.amoro.optimizer.spark;

import org.apache.amoro.optimizer.common.Optimizer;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkContext;

/** An optimizer that is a Spark application; its driver speaks to AMS. */
public final class SparkOptimizer {
  private SparkOptimizer() {}

  public static void main(String[] arguments) throws InterruptedException {
    Optimizer optimizer = new Optimizer(arguments);
    SparkContext context = new SparkContext(new SparkConf());
    try {
      optimizer.run(context.applicationId());
    } finally {
      context.stop();
    }
  }
}
